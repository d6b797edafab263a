# SPDX-License-Identifier: Apache-2.0
"""Flips and truncations of each file of an export, a base and an adapter: no crash, none that is not found.

``PYTHONPATH=tests python -m hostile.flips [COUNT]`` prints counts by file and exits with 1 when a case
crashes or hangs, or when a changed folder passes the integrity check.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import bcq
from bcq import runtime
from bcq.adapters.adapter import Adapter
from bcq.errors import BcqError
from bcq.exporting.write import write_model
from bcq.files.base import QuantizedBase
from bcq.files.integrity import check_integrity
from graphs import model_of, normal
from hostile.runner import isolated
from tiny_adapters import task
from tiny_models import save

COUNT = 1000
BAD = ("crash", "hang", "traceback", "unseen")
_TRUNCATED = 0.2  # of the cases
_TWO_LAYERS = """graph (float[n, 64] x) => (float[n, 48] y) {
    h = MatMul (x, first)
    r = Relu (h)
    y = Gemm <transB = 1> (r, second, bias)
}"""


@dataclass(frozen=True)
class Change:
    """One change of one file: a flipped bit, or a length to which it is cut."""

    folder: str
    file: str
    bit: int | None
    length: int | None

    def apply(self, content: bytes) -> bytes:
        """The content after the change."""
        if self.bit is None:
            return content[: self.length]
        changed = bytearray(content)
        changed[self.bit // 8] ^= 1 << self.bit % 8
        return bytes(changed)


def make(root: Path) -> list[Path]:
    """An export of a graph, a base and an adapter of it."""
    model = model_of(_TWO_LAYERS, first=normal(64, 96), second=normal(48, 96), bias=normal(48))
    write_model(model, root / "in.onnx")
    bcq.export(root / "in.onnx", root / "graph", bits=2, method="greedy")
    source = save("bert", root / "model", num_hidden_layers=1)
    bcq.quantize(source, root / "base", bits=2, method="greedy")
    task(QuantizedBase.open(root / "base"), "task", 1).save(root / "adapter")
    return [root / "graph", root / "base", root / "adapter"]


def changes(folders: list[Path], count: int, seed: int = 0) -> Iterator[Change]:
    """Changes of all files in turn, so that small ones are not forgotten."""
    draw = random.Random(seed)
    files = [(folder, file) for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    for number in range(count):
        folder, file = files[number % len(files)]
        size, name = file.stat().st_size, file.relative_to(folder).as_posix()
        if draw.random() < _TRUNCATED:
            yield Change(folder.name, name, None, draw.randrange(size))
        else:
            yield Change(folder.name, name, draw.randrange(8 * size), None)


def attempt(folder: Path) -> tuple[str, str]:
    """Uses a changed folder as a program would, then checks it; in a process of its own."""
    try:
        used = _use(folder)
    except BcqError as fault:
        used = f"refused {fault.code}"
    try:
        intact = check_integrity(folder)
        seen = not intact.ok
    except BcqError:
        seen = True
    return ("seen" if seen else "unseen"), used


def _use(folder: Path) -> str:
    if (folder / runtime.MODEL_NAME).exists():
        options = runtime.default_options()
        options.intra_op_num_threads = 1
        session = runtime.session(folder, options)
        session.run(None, {"x": np.ones((2, 64), np.float32)})
        return "ran"
    if folder.name == "adapter":
        return f"opened {Adapter.open(folder).count} values"
    base = QuantizedBase.open(folder)
    for name in base.names():
        base.packed(name)
    for name in base.dense_names():
        base.checkpoint.raw(name)
    return "read"


def run(count: int = COUNT, seed: int = 0) -> Counter[tuple[str, str]]:
    """Outcomes by file."""
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="bcq-flips-") as root:
        folders = make(Path(root))
        for change in changes(folders, count, seed):
            file = Path(root) / change.folder / change.file
            content = file.read_bytes()
            file.write_bytes(change.apply(content))
            try:
                outcome, detail = isolated(partial(attempt, file.parent))
            finally:
                file.write_bytes(content)
            if outcome in BAD:
                print(json.dumps({**vars(change), "outcome": outcome, "detail": detail[-500:]}), flush=True)
            counts[f"{change.folder}/{change.file}", outcome] += 1
    return counts


def main(arguments: list[str]) -> int:
    """Prints counts by file; 0 when every change was seen and none crashed."""
    counts = run(int(arguments[0]) if arguments else COUNT)
    for (file, outcome), count in sorted(counts.items()):
        print(f"{file:40} {outcome:10} {count}")
    bad = sum(count for (_, outcome), count in counts.items() if outcome in BAD)
    print(f"{sum(counts.values())} flips and truncations, {bad} crashed or unseen")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
