# SPDX-License-Identifier: Apache-2.0
"""One file for 2, 3 and 4 bits against three files: size, perplexity, parity and speed, end to end.

    python tools/nested_table.py                                   # the demo model on its held-out text
    python tools/nested_table.py MODEL --text test.txt --limit 64
    python tools/nested_table.py MODEL --text test.txt --limit 64 --calibrate train.txt

Every file is made by `bcq.export`, with the same calibration text if there is one, and read back:
perplexities and parity are those of onnxruntime. Speed is that of a product with 2 of 4 planes against one
whose codes have 2, both from memory, in turns; ``--rounds 0`` leaves it out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import bcq
from bcq.bcq import BcqWeight, ceil_div
from bcq.evaluate import perplexity, read_text
from bcq.kernels.core import Core
from bcq.packing import PackedWeight, among, pack
from bcq.precisions.files import PATTERN
from bcq.report import table

PRECISIONS = (2, 3, 4)
DEMO = Path(bcq.__file__).parent / "demo_model"
SHAPE = (4096, 4096)
ROTATED = 96e6  # bytes of codes that take turns, so that none is in a cache


@dataclass(frozen=True)
class File:
    """One export, and what it gives at one precision."""

    bits: int
    total: int
    perplexity: float
    parity: float


def main() -> None:
    """Prints two tables."""
    arguments = parse()
    text = read_text(arguments.text or DEMO / "heldout.txt")
    with tempfile.TemporaryDirectory() as temporary:
        apart, together = Path(temporary) / "apart", Path(temporary) / "together"
        more: dict[str, Any] = {
            "group_size": 128,
            "calibrate": arguments.calibrate,
            "workers": arguments.workers,
        }
        bcq.export(arguments.model, together, bits=4, also_bits=(2, 3), **more)
        rows = []
        for bits in PRECISIONS:
            bcq.export(arguments.model, apart, bits=bits, **more)
            alone = measured(apart, text, arguments.limit, bits, None)
            rows.append((alone, measured(together, text, arguments.limit, bits, bits)))
            print(f"{bits} bits done", flush=True)
    print(quality(rows))
    if arguments.rounds:
        print(speed(arguments.rounds))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=DEMO, help="a decoder's folder")
    parser.add_argument("--text", type=Path, help="UTF-8 text to measure on")
    parser.add_argument("--limit", type=int, help="windows of the text")
    parser.add_argument("--calibrate", type=Path, help="text to solve every file on")
    parser.add_argument("--workers", type=int, help="processes that solve")
    parser.add_argument("--rounds", type=int, default=25, help="turns of the timings")
    return parser.parse_args()


def measured(folder: Path, text: str, limit: int | None, bits: int, asked: int | None) -> File:
    """An export at one precision; `asked` is None for its only one."""
    total = sum(path.stat().st_size for path in folder.glob(PATTERN))
    found = perplexity(folder, text, limit=limit, bits=asked)
    parity = bcq.verify(folder, bits=asked, steps=4)
    assert parity.ok, f"{folder}: {parity}"
    return File(bits, total, found.perplexity, parity.relative)


def quality(rows: list[tuple[File, File]]) -> str:
    """Sizes, perplexities and parity."""
    four = rows[-1][0].total
    body = [
        [
            str(alone.bits),
            f"{alone.total / 1e6:.3f}",
            f"{alone.perplexity:.2f}",
            f"{one.total / 1e6:.3f}",
            f"{one.total / four:.3f}",
            f"{one.perplexity:.2f}",
            f"{one.parity:.0e}",
        ]
        for alone, one in rows
    ]
    header = ["bits", "own file MB", "perplexity", "one file MB", "of 4 bits", "perplexity there", "parity"]
    return table(header, body, "r" * len(header))


def speed(rounds: int) -> str:
    """Shortest fifth of the processor times of 2 bits, with codes of 2 and of 4 planes."""
    core, random = Core.load(), np.random.default_rng(0)
    plain = pack(random_weight(random, 2))
    wide = among(plain, np.concatenate([plain.codes, pack(random_weight(random, 2)).codes], axis=2))
    body = []
    for rows in (1, 8):
        a = random.standard_normal((rows, SHAPE[1])).astype(np.float32)
        for where in ("mapped", "resident"):
            turns = [prepared(core, weight, a, where) for weight in (plain, wide)]
            times = interleaved(turns, rounds)
            body.append([str(rows), where, *(f"{t:.0f}" for t in times), f"{times[1] / times[0]:.2f}"])
    header = ["rows", "codes", "2 planes us", "2 of 4 planes us", "ratio"]
    return table(header, body, "rlrrr")


def random_weight(random: np.random.Generator, bits: int) -> BcqWeight:
    """A matrix of `SHAPE` with random planes, groups of 128."""
    rows, inputs = SHAPE
    words = random.integers(0, 2**32, (bits, rows, ceil_div(inputs, 32)), np.uint32)
    alpha = random.uniform(0.1, 1, (bits, rows, ceil_div(inputs, 128))).astype(np.float16)
    return BcqWeight(words, alpha, None, inputs, 128)


def prepared(core: Core, weight: PackedWeight, a: Any, where: str) -> Callable[[int], float]:
    """A function that multiplies with one of many copies, and says how many us of processor time it took."""
    copies = [
        replace(weight, codes=weight.codes.copy()) for _ in range(ceil_div(int(ROTATED), weight.codes.nbytes))
    ]
    held = [core.make_resident(copy) for copy in copies] if where == "resident" else [None] * len(copies)

    def run(turn: int) -> float:
        at = turn % len(copies)
        began = time.thread_time_ns()
        core.matmul(a, copies[at], resident=held[at])
        return (time.thread_time_ns() - began) / 1e3

    return run


def interleaved(turns: list[Callable[[int], float]], rounds: int) -> list[float]:
    """The 20th percentile of each, run in turns."""
    times: list[list[float]] = [[] for _ in turns]
    for turn in range(rounds):
        for run, found in zip(turns, times, strict=True):
            found.append(run(turn))
    return [float(np.percentile(found, 20)) for found in times]


if __name__ == "__main__":
    main()
