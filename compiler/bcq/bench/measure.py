# SPDX-License-Identifier: Apache-2.0
"""Times all contenders on all problems, in turns, after checking what each computes."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bcq import contract
from bcq.bcq import ceil_div
from bcq.bench.bandwidth import ReadBandwidth
from bcq.bench.contenders import Contender, Weights, bcq, dense, nbits, write_model
from bcq.bench.result import BenchResult, Measurement
from bcq.core import Core
from bcq.errors import ParityFailure, UsageError
from bcq.progress import SILENT, Progress
from bcq.runtime import default_options, register_library

COLD_BYTES = 96 * 2**20  # copies of the weights that a cold round reads: more than the caches hold
MAX_COPIES = 2000  # nodes of one model; with more, onnxruntime takes minutes to load it
WARM_UP = 2
HOT_RUNS = 20  # products in one hot sample
PEER_BITS = (2, 4, 8)
PEER_BLOCK = 128
MICRO = 1e6

SHAPES = ((4096, 4096), (4096, 1024), (1024, 1024))
BITS = (2, 3, 4)


@dataclass(frozen=True)
class Problem:
    """What is multiplied: M tokens, K inputs, N rows; with how many threads, and where the weights are."""

    rows: int
    inputs: int
    tokens: int
    threads: int
    cold: bool


def run(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    bits: Sequence[int] = BITS,
    group_size: int = 128,
    m_values: Sequence[int] = (1,),
    threads: Sequence[int] = (1, 2),
    cold: Sequence[bool] = (True,),
    rounds: int = 15,
    progress: Progress = SILENT,
) -> BenchResult:
    """Measures BcqMatMul, MatMul and MatMulNBits in one run.

    Every contender is a model of nodes with distinct weights, run by onnxruntime. In each round every
    contender runs once, so that drifts of the machine meet all of them alike; the first two warm up. Cold
    models hold at least 96 MiB of weights and each run reads all of them once; hot ones hold one copy. The
    time of one product is the time of a run over its number of products, onnxruntime's own cost of a run
    included.

    Args:
        shapes: pairs (N, K).
        bits: planes of BcqMatMul.
        group_size: inputs per scaling factor of BcqMatMul; 0 is row-wise.
        m_values: rows of activations.
        threads: thread counts of onnxruntime.
        cold: True for weights from memory, False for weights in caches; give both for both.
        rounds: timed rounds.
        progress: told of each problem.

    Returns:
        One measurement per problem and contender.

    Raises:
        UsageError: E202 for a shape of which cold weights would need more than 2,000 copies.
        ParityFailure: E502 when a contender computes something else than float64 arithmetic within its class.
    """
    if True in cold:
        _check_copies(shapes, bits, group_size)
    measurements: list[Measurement] = []
    progress.start("bench", len(shapes) * len(m_values) * len(cold) * len(threads))
    for (rows, inputs), is_cold in product(shapes, cold):
        models = [_Model(c, rows, inputs, is_cold) for c in _contenders(rows, inputs, bits, group_size)]
        try:
            for tokens, count in product(m_values, threads):
                problem = Problem(rows, inputs, tokens, count, is_cold)
                measurements += _measure(problem, models, rounds)
                progress.step(f"N={rows} K={inputs} M={tokens}", f"{count} threads")
        finally:
            for model in models:
                model.close()
    progress.done()
    return BenchResult(_kernel(), _versions(), tuple(measurements))


def _kernel() -> str:
    core = Core.load()
    return core.select_matmul(bits=3, flags=core.flags())


def _versions() -> dict[str, str]:
    return {"onnxruntime": ort.__version__, "numpy": np.__version__, "machine": platform.machine()}


def _contenders(rows: int, inputs: int, bits: Sequence[int], group_size: int) -> list[Contender]:
    ours = [bcq(rows, inputs, q, group_size) for q in bits]
    return [*ours, dense(rows, inputs), *(nbits(rows, inputs, b, PEER_BLOCK) for b in PEER_BITS)]


def _check_copies(shapes: Sequence[tuple[int, int]], bits: Sequence[int], group_size: int) -> None:
    """Refuses shapes so small that cold weights would be a model of very many nodes."""
    for rows, inputs in shapes:
        if rows * inputs > 8 * COLD_BYTES // MAX_COPIES:  # one bit a weight is enough then
            continue
        for contender in _contenders(rows, inputs, bits, group_size):
            copies = ceil_div(COLD_BYTES, contender.draw(np.random.default_rng(0)).nbytes)
            if copies > MAX_COPIES:
                raise UsageError(
                    "E202",
                    f"--shapes {rows}x{inputs}: cold weights of {contender.name} would need {copies:,} "
                    f"copies, at most {MAX_COPIES:,} are made.",
                    "Use --weights hot, or a larger shape.",
                )


class _Model:
    """A contender's model on disk, with the weights of its first and last node for checking."""

    def __init__(self, contender: Contender, rows: int, inputs: int, cold: bool) -> None:
        random = np.random.default_rng(0)
        first = contender.draw(random)
        self.contender = contender
        self.weight_bytes = first.nbytes
        self.count = ceil_div(COLD_BYTES, first.nbytes) if cold else 1
        copies = [first, *(contender.draw(random) for _ in range(self.count - 1))]
        self.checked = {0: first, self.count - 1: copies[-1]}
        self._folder = tempfile.TemporaryDirectory(prefix="bcq-bench-")
        self.path = write_model(contender, copies, inputs, rows, Path(self._folder.name))

    def close(self) -> None:
        """Removes the files."""
        self._folder.cleanup()


class _Runner:
    """A session of a model with everything bound, so that a run allocates nothing in Python."""

    def __init__(self, model: _Model, problem: Problem, a: NDArray[np.float32]) -> None:
        self.model = model
        self._session = _session(model.path, problem.threads)
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input("A", a)
        for i in range(model.count):
            self._binding.bind_output(f"Y{i}")
        self._runs = 1 if problem.cold else HOT_RUNS
        self._products = self._runs * model.count
        self.error = self._check(a)
        self.times: list[float] = []

    def _check(self, a: NDArray[np.float32]) -> float:
        """Relative error of the checked nodes; raises when it is beyond the contender's class."""
        self._session.run_with_iobinding(self._binding)
        outputs = self._binding.copy_outputs_to_cpu()
        worst = max(_error(outputs[i], a, weights) for i, weights in self.model.checked.items())
        contender = self.model.contender
        if not worst <= contender.error:
            raise ParityFailure(
                "E502",
                f"{contender.name}: relative error {worst:.1e} against float64, "
                f"expected at most {contender.error:.0e}.",
                "Its time would mean nothing; 'bcq doctor' shows the kernels of this machine.",
            )
        return worst

    def round(self) -> float:
        """Microseconds of one product."""
        begin = time.perf_counter()
        for _ in range(self._runs):
            self._session.run_with_iobinding(self._binding)
        return (time.perf_counter() - begin) * MICRO / self._products


def _session(path: Path, threads: int) -> ort.InferenceSession:
    """Idle threads of a session must not spin while another contender is timed."""
    options = default_options()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    register_library(options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _error(y: NDArray[np.float32], a: NDArray[np.float32], weights: Weights) -> float:
    exact = a.astype(np.float64) @ weights.dense().astype(np.float64).T
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


def _measure(problem: Problem, models: Sequence[_Model], rounds: int) -> list[Measurement]:
    random = np.random.default_rng(1)
    a = random.standard_normal((problem.tokens, problem.inputs), dtype=np.float32)
    runners = [_Runner(model, problem, a) for model in models]
    bandwidth = ReadBandwidth(problem.threads)
    try:
        for index in range(WARM_UP + rounds):
            bandwidth.measure()
            for runner in runners:
                elapsed = runner.round()
                if index >= WARM_UP:
                    runner.times.append(elapsed)
        return [_summary(runner, problem, bandwidth.best) for runner in runners]
    finally:
        bandwidth.close()


def _summary(runner: _Runner, problem: Problem, bandwidth: float) -> Measurement:
    best, low, median, high = np.percentile(runner.times, [0, 25, 50, 75])
    contender = runner.model.contender
    return Measurement(
        contender=contender.name,
        ours=contender.domain == contract.DOMAIN,
        bits=contender.bits,
        rows=problem.rows,
        inputs=problem.inputs,
        tokens=problem.tokens,
        threads=problem.threads,
        cold=problem.cold,
        weight_bytes=runner.model.weight_bytes,
        microseconds=float(median),
        best=float(best),
        low=float(low),
        high=float(high),
        error=runner.error,
        bandwidth=bandwidth,
    )
