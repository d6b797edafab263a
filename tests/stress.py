# SPDX-License-Identifier: Apache-2.0
"""Load on onnxruntime with the operator library: threads on one session, sessions on one file, reloads.

``python tests/stress.py`` runs the long counts of the reliability bar; tests run short ones.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bcq.bench.contenders import bcq
from bcq.runtime import default_options, session
from nodes import Array

if TYPE_CHECKING:
    import onnxruntime

ROWS, INPUTS, NODES, BITS, GROUP = 200, 416, 4, 3, 64
MOST_GROWTH = 2**20  # bytes of resident memory that reloads may add
SETTLE = 0.05  # share of the cycles after which memory is looked at first: arenas and caches have filled


@dataclass(frozen=True)
class Runs:
    """Products that ran at the same time, and how many of them had other bits than alone."""

    runs: int
    wrong: int


@dataclass(frozen=True)
class Cycles:
    """Sessions opened, run and closed; growth of resident memory in bytes and of open file descriptors."""

    cycles: int
    resident_growth: int
    descriptor_growth: int


def write_weights(folder: Path) -> Path:
    """A model of some BcqMatMul nodes with external, mapped weights."""
    contender = bcq(ROWS, INPUTS, BITS, GROUP)
    random = np.random.default_rng(0)
    contender.prepare([contender.draw(random) for _ in range(NODES)], folder)
    return folder / "model.onnx"


def threads_on_one_session(model: Path, threads: int, runs: int) -> Runs:
    """``runs`` calls of one session in all, from ``threads`` threads, each with activations of its own."""
    options = default_options()
    options.intra_op_num_threads = 2
    opened = session(model, options)
    return _at_once(threads, runs, lambda _: lambda a: opened.run(None, {"A": a}))


def sessions_on_one_file(model: Path, sessions: int, runs: int) -> Runs:
    """``runs`` calls in all of ``sessions`` sessions that map the same weights, a thread each."""

    def opened(_: int) -> Callable[[Array], list[Array]]:
        own = session(model, one_thread())
        return lambda a: own.run(None, {"A": a})

    return _at_once(sessions, runs, opened)


def one_thread() -> onnxruntime.SessionOptions:
    """Fresh options of a session that starts no threads."""
    options = default_options()
    options.intra_op_num_threads = 1
    return options


def load_cycles(model: Path, cycles: int) -> Cycles:
    """Opens, runs and closes a session ``cycles`` times after a settling share of that number.

    Every second one has session options of its own, the others share theirs.
    """
    a = np.ones((1, INPUTS), np.float32)
    shared = one_thread()

    def cycle(times: int) -> tuple[int, int]:
        for number in range(times):
            session(model, shared if number % 2 else one_thread()).run(None, {"A": a})
        gc.collect()
        give_back_what_is_free()
        return resident_bytes(), sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = cycle(max(20, int(cycles * SETTLE)))
    after = cycle(cycles)
    return Cycles(cycles, after[0] - before[0], after[1] - before[1])


def give_back_what_is_free() -> None:
    """Lets malloc give the system the pages that nothing uses: it keeps up to some MB of them, by chance."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def _at_once(threads: int, runs: int, open_one: Callable[[int], Callable[[Array], list[Array]]]) -> Runs:
    """Runs what ``open_one`` gives in every thread; a thread that raises counts all of its runs as wrong."""
    each = runs // threads
    wrong = [each] * threads

    def work(index: int) -> None:
        run = open_one(index)
        a = np.random.default_rng(index).standard_normal((3, INPUTS), dtype=np.float32)
        alone = [y.tobytes() for y in run(a)]
        start.wait()
        wrong[index] = sum([y.tobytes() for y in run(a)] != alone for _ in range(each))

    start = threading.Barrier(threads)
    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Runs(each * threads, sum(wrong))


def main() -> int:
    """Runs the counts of the reliability bar; 1 when one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="products of R12 each")
    parser.add_argument("--cycles", type=int, default=10_000, help="sessions of R15")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bcq-stress-") as folder:
        model = write_weights(Path(folder))
        good = True
        if options.runs:
            for measure, count in ((threads_on_one_session, 16), (sessions_on_one_file, 8)):
                done = measure(model, count, options.runs)
                good = good and done.wrong == 0
                print(f"{measure.__name__}: {done.runs} products of {count} threads, {done.wrong} wrong")
        if options.cycles:
            grown = load_cycles(model, options.cycles)
            good = good and grown.resident_growth < MOST_GROWTH and grown.descriptor_growth == 0
            print(
                f"{grown.cycles} sessions: resident memory +{grown.resident_growth / 1024:.0f} KiB, "
                f"descriptors +{grown.descriptor_growth}"
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
