# SPDX-License-Identifier: Apache-2.0
"""Times all contenders on all problems, in turns, after checking what each computes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import ceil_div
from bcq.bench.bandwidth import ReadBandwidth
from bcq.bench.contender import ERRORS, Contender, Float32, Model, Weights
from bcq.bench.machine import machine
from bcq.bench.plan import Plan, Problem
from bcq.bench.result import BenchResult, Measurement
from bcq.bench.roster import roster
from bcq.bench.scratch import scratch_folder
from bcq.errors import ParityFailure, UsageError
from bcq.progress import SILENT, Progress
from bcq.runtime import one_line

COLD_BYTES = 96 * 2**20  # copies of the weights that a cold round reads: more than the caches hold
MAX_COPIES = 2000  # nodes of one model; with more, onnxruntime takes minutes to load it
WARM_UP = 2
SAMPLE_SECONDS = 0.005  # a hot sample repeats its product until it lasts about this long
MOST_REPEATS = 64
CHECKED_ROWS = 512  # rows of W that are compared at a time, so that float64 stays small
# Seconds in which threads that have had their turn stop spinning: those of onnxruntime, where a session of
# one product lets them, took 50 to 100 ms on two cores, those of OpenMP about 6.
SETTLE = 0.1
SETTLE_OPENMP = 0.02
MICRO = 1e6


def run(plan: Plan, progress: Progress = SILENT) -> BenchResult:
    """Measures BcqMatMul and its peers in one run.

    Every contender is a model of products with distinct weights. In each round every contender runs once,
    each round beginning with another one, so that drifts of the machine meet all of them alike; the first
    two rounds warm up. Cold models hold at least 96 MiB of weights and each run reads all of them once; hot
    ones hold one copy, and a sample repeats it for about 5 ms. The time of one product is the time of a
    sample over its number of products, the cost of a run included.

    Args:
        plan: what is measured.
        progress: told of each problem.

    Returns:
        One measurement per problem and contender. A peer that cannot run or computes something else than
        float64 arithmetic within its class is absent, with the reason.

    Raises:
        UsageError: E202 for a shape of which cold weights would need more than 2,000 copies.
        ParityFailure: E502 when BcqMatMul computes something else.
    """
    check_copies(plan)
    measurements: list[Measurement] = []
    absent: dict[str, str] = {}
    where = machine()
    progress.start("bench", len(plan.problems))
    for (rows, inputs, cold), problems in plan.groups().items():
        who = roster(plan, rows, inputs)
        absent |= who.absent
        activations = {p.tokens: _activations(p.tokens, inputs) for p in problems}
        with _models(who.contenders, cold, activations, absent) as models:
            for problem in problems:
                measurements += _measure(problem, models, activations[problem.tokens], plan.rounds, absent)
                progress.step(str(problem))
    progress.done()
    return BenchResult(where, tuple(measurements), absent)


def check_copies(plan: Plan) -> None:
    """Refuses shapes so small that cold weights would be a model of very many nodes."""
    for rows, inputs, cold in plan.groups():
        if not cold or rows * inputs > 8 * COLD_BYTES // MAX_COPIES:  # one bit a weight is enough then
            continue
        for contender in roster(plan, rows, inputs).contenders:
            copies = ceil_div(COLD_BYTES, contender.draw(np.random.default_rng(0)).nbytes)
            if copies > MAX_COPIES:
                raise UsageError(
                    "E202",
                    f"--shapes {rows}x{inputs}: cold weights of {contender.name} would need {copies:,} "
                    f"copies, at most {MAX_COPIES:,} are made.",
                    "Use --weights hot, or a larger shape.",
                )


def _activations(tokens: int, inputs: int) -> Float32:
    return np.random.default_rng(1).standard_normal((tokens, inputs), dtype=np.float32)


def checked_tokens(tokens: int) -> list[int]:
    """Rows of activations whose products are checked: all of a few, a sample of many."""
    return list(range(tokens)) if tokens <= 4 else [0, 1, tokens // 2, tokens - 1]


class _Entry:
    """A contender's model, and what its first and last copy must compute."""

    def __init__(self, contender: Contender, cold: bool, a: dict[int, Float32], folder: Path) -> None:
        random = np.random.default_rng(0)
        first = contender.draw(random)
        self.contender = contender
        self.weight_bytes = first.nbytes
        self.copies = ceil_div(COLD_BYTES, first.nbytes) if cold else 1
        copies = [first, *(contender.draw(random) for _ in range(self.copies - 1))]
        self._expected = {i: _products(copies[i], a) for i in {0, self.copies - 1}}
        self.model: Model = contender.prepare(copies, folder)

    def error(self, output: Float32, copy: int, tokens: int) -> float:
        """Relative error of a product with one of the checked copies."""
        expected = self._expected[copy][tokens]
        difference = output[checked_tokens(tokens)] - expected
        return float(np.linalg.norm(difference) / np.linalg.norm(expected))

    @property
    def checked(self) -> list[int]:
        """The copies that are checked."""
        return list(self._expected)


def _products(weights: Weights, a: dict[int, Float32]) -> dict[int, NDArray[np.float64]]:
    """Checked rows of A W^T in float64, for each number of tokens."""
    stacked = np.concatenate([a[tokens][checked_tokens(tokens)] for tokens in a]).astype(np.float64)
    dense = weights.dense()
    blocks = [
        stacked @ dense[begin : begin + CHECKED_ROWS].astype(np.float64).T
        for begin in range(0, dense.shape[0], CHECKED_ROWS)
    ]
    ends = np.cumsum([len(checked_tokens(tokens)) for tokens in a])[:-1]
    return dict(zip(a, np.split(np.concatenate(blocks, axis=1), ends), strict=True))


@contextmanager
def _models(
    contenders: Sequence[Contender], cold: bool, a: dict[int, Float32], absent: dict[str, str]
) -> Iterator[list[_Entry]]:
    """Models in folders of their own, which go with them."""
    with scratch_folder() as root:
        entries = []
        for i, contender in enumerate(contenders):
            folder = root / str(i)
            folder.mkdir()
            try:
                entries.append(_Entry(contender, cold, a, folder))
            except Exception as error:  # a peer's library may raise anything
                _leave_out(contender, error, absent)
        yield entries


def _leave_out(contender: Contender, error: Exception, absent: dict[str, str]) -> None:
    """A peer that cannot take part is listed; a fault of ours, or of the disk, is not hidden."""
    if contender.ours or isinstance(error, (OSError, MemoryError)):
        raise error
    absent[contender.name] = one_line(error)


def settle(problem: Problem, contender: Contender) -> float:
    """Seconds that the others wait for a contender's threads."""
    if problem.threads == 1:
        return 0.0
    if not problem.cold:
        return SETTLE
    return SETTLE_OPENMP if contender.spins else 0.0


class _Runner:
    """A checked session that is timed round after round."""

    def __init__(self, entry: _Entry, problem: Problem, a: Float32) -> None:
        self.entry = entry
        self._session = entry.model.session(a, problem.threads)
        self._session.run()
        self.error = self._check(problem.tokens)
        begin = time.perf_counter()
        self._session.run()
        lasted = max(time.perf_counter() - begin, 1e-6)
        self._hot = not problem.cold
        self._repeats = min(MOST_REPEATS, math.ceil(SAMPLE_SECONDS / lasted)) if self._hot else 1
        self._settle = settle(problem, entry.contender)
        self.times: list[float] = []

    def _check(self, tokens: int) -> float:
        """Relative error of the checked copies; raises when it is beyond the contender's class."""
        entry = self.entry
        worst = max(entry.error(self._session.output(i), i, tokens) for i in entry.checked)
        if not worst <= entry.contender.error:
            raise ParityFailure(
                "E502",
                f"{entry.contender.name}: relative error {worst:.1e} against float64, "
                f"expected at most {entry.contender.error:.0e}.",
                "Its time would mean nothing; 'bcq doctor' shows the kernels of this machine.",
            )
        return worst

    def round(self) -> float:
        """Microseconds of one product."""
        run = self._session.run
        if self._hot:
            run()  # the others' weights have been in the caches since
        begin = time.perf_counter()
        for _ in range(self._repeats):
            run()
        elapsed = time.perf_counter() - begin
        time.sleep(self._settle)
        return elapsed * MICRO / (self._repeats * self.entry.copies)


def _measure(
    problem: Problem, entries: list[_Entry], a: Float32, rounds: int, absent: dict[str, str]
) -> list[Measurement]:
    runners = []
    for entry in [entry for entry in entries if entry.contender.takes(problem.tokens, problem.cold)]:
        try:
            runners.append(_Runner(entry, problem, a))
        except Exception as error:  # a peer's library may raise anything
            _leave_out(entry.contender, error, absent)
            entries.remove(entry)
    bandwidth = ReadBandwidth(problem.threads)
    try:
        for index in range(WARM_UP + rounds):
            bandwidth.measure()
            for i in range(len(runners)):
                runner = runners[(i + index) % len(runners)]
                elapsed = runner.round()
                if index >= WARM_UP:
                    runner.times.append(elapsed)
        return [_summary(runner, problem, bandwidth) for runner in runners]
    finally:
        bandwidth.close()


def _summary(runner: _Runner, problem: Problem, bandwidth: ReadBandwidth) -> Measurement:
    best, low, median, high = (float(x) for x in np.percentile(runner.times, [0, 25, 50, 75]))
    contender = runner.entry.contender
    return Measurement(
        contender=contender.name,
        family=contender.family,
        bits=contender.bits,
        arithmetic=_arithmetic(contender, runner.error),
        kernel=contender.kernel,
        group_size=contender.group_size,
        rows=problem.rows,
        inputs=problem.inputs,
        tokens=problem.tokens,
        threads=problem.threads,
        cold=problem.cold,
        weight_bytes=runner.entry.weight_bytes,
        microseconds=median,
        best=best,
        low=low,
        high=high,
        error=runner.error,
        bandwidth=bandwidth.median,
        bandwidth_best=bandwidth.best,
    )


def _arithmetic(contender: Contender, error: float) -> str:
    """A peer that may quantize activations and, on this CPU, shows no such error has float32 ones."""
    return "float32" if not contender.ours and error <= ERRORS["float32"] else contender.arithmetic
