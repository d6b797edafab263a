# SPDX-License-Identifier: Apache-2.0
"""Times of the CUDA kernels and of cuBLAS on the same device in the same run: pieces of tools/gpu_check.py.

A time is the median of graph replays, each a chain of launches over copies of the weights that together are
several times the L2 cache, so that every launch reads its weights from memory, as the layers of a model do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from bcq.kernels.cuda import Cuda, CudaWeight
from gpu_checks import LARGEST, TILES, WIDE, activations, capability, demand, relative_error, takes
from gpu_pieces import Setting, Table
from gpu_weights import Shape, Weight, into, random_weight

ROTATED_BYTES = 400e6  # of weights in one chain: more than six times the 60 MB of an H200's L2
MOST_COPIES = 24
REPLAYS = 15
COPY_BYTES = 1 << 30
MATRICES = ((17408, 5120), (4096, 4096), (14336, 4096), (4096, 14336))
BITS = (3, 2, 4)
ROWS = (2, 4, 8, 16, 32, 64, 128, 512)
GROUP = 128
HEADER = (
    "N x K",
    "M",
    "q",
    "kernel",
    "us, median (range)",
    "GB/s",
    "of copy",
    "relative error",
    "cuBLAS fp16, us",
    "faster",
)
SMALL = ((64, 256),)  # of a rehearsal on the CPU


@dataclass(frozen=True)
class Timing:
    """Microseconds of one launch: the median of the replays, and their smallest and largest."""

    median: float
    least: float
    most: float


def of_times(times: Sequence[float]) -> Timing:
    """Median and range."""
    return Timing(statistics.median(times), min(times), max(times))


def chained(launches: Sequence[Callable[[], object]], device: str = "cuda") -> Timing:
    """Time of a launch in a captured chain of them; on the CPU of one after the other."""
    for launch in launches:
        launch()
    if device == "cpu":
        start = time.perf_counter()
        for launch in launches:
            launch()
        return of_times([(time.perf_counter() - start) * 1e6 / len(launches)])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    times = []
    for _ in range(REPLAYS + 3):
        start_event, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start_event.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start_event.elapsed_time(end) * 1e3 / len(launches))
    return of_times(times[3:])  # the first ones warm up


@cache
def copy_bandwidth(device: str) -> float:
    """GB/s of a device-to-device copy, bytes read and written."""
    count = COPY_BYTES if device == "cuda" else 1 << 20
    source = torch.empty(count, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * count / chained([lambda: target.copy_(source)] * 4, device).median / 1e3


def copies_of(nbytes: int, device: str) -> int:
    """How many weights a chain walks through."""
    return 1 if device == "cpu" else max(2, min(MOST_COPIES, round(ROTATED_BYTES / nbytes)))


@cache
def dense_time(N: int, K: int, M: int, device: str) -> Timing:
    """Float16 in PyTorch's cuBLAS, ``[M, K]`` times ``[K, N]``; a rehearsal does float32 on the CPU."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    weights = [torch.randn(N, K, device=device).to(dtype) for _ in range(copies_of(2 * N * K, device))]
    a = activations(M, K, dtype, device)
    y = torch.empty(M, N, dtype=dtype, device=device)
    return chained([lambda w=w: torch.matmul(a, w.T, out=y) for w in weights], device)  # type: ignore[misc]


class Bench:
    """One matrix: the weights of a chain, and what the first of them must compute."""

    def __init__(self, cuda: Cuda, shape: Shape, device: str) -> None:
        self.cuda, self.shape, self.device = cuda, shape, device
        seeds = range(copies_of(shape.nbytes, device))
        self.weights: list[Weight] = [random_weight(shape, device, seed) for seed in seeds]
        self.dense = self.weights[0].dense()

    def time(self, M: int, kernel: str | None) -> tuple[Timing, float]:
        """Time and relative error of one of our kernels, or of the selected one.

        Raises:
            Failed: when the result is wrong.
        """
        a = activations(M, self.shape.K, torch.float16, self.device)
        y = torch.empty(M, self.shape.N, dtype=torch.float16, device=self.device)
        into(self.cuda, y, a, self.weights[0], kernel=kernel)
        error = relative_error(y, a.double() @ self.dense.T)
        demand(error < LARGEST[torch.float16], f"{kernel} {self.shape} M={M}: relative error {error:.2e}")
        launches = [lambda w=w: into(self.cuda, y, a, w, kernel=kernel) for w in self.weights]
        return chained(launches, self.device), error

    def chosen(self, M: int) -> str:
        """The kernel that the device selects."""
        processors = (
            132 if self.device == "cpu" else torch.cuda.get_device_properties(0).multi_processor_count
        )
        s = self.shape
        weight = CudaWeight(0, 0, None, None, s.N, s.K, s.g, s.q)
        sm = capability(self.device)
        return str(self.cuda.select(weight, M=M, dtype="float16", sm=sm, processors=processors))

    def row(self, M: int) -> tuple[str, ...]:
        """One row of the table, beside cuBLAS."""
        s = self.shape
        ours, error = self.time(M, None)
        dense = dense_time(s.N, s.K, M, self.device)
        rate = (s.nbytes + 2 * M * (s.N + s.K)) / ours.median / 1e3
        return (
            f"{s.N}x{s.K}",
            str(M),
            str(s.q),
            self.chosen(M),
            f"{ours.median:.1f} ({ours.least:.1f} to {ours.most:.1f})",
            f"{rate:.0f}",
            f"{100 * rate / copy_bandwidth(self.device):.0f} %",
            f"{error:.1e}",
            f"{dense.median:.1f}",
            f"{dense.median / ours.median:.2f}",
        )


def device_name(device: str) -> str:
    """For the page."""
    return "a rehearsal" if device == "cpu" else torch.cuda.get_device_name()


def as_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], setting: Setting) -> Table:
    """What gpu_report.py writes; says when the time was up."""
    cut = " The time was up before all rows were measured." if setting.is_over() else ""
    return {"title": title + cut, "header": header, "rows": rows, "device": device_name(setting.device)}


def measured(
    cuda: Cuda, setting: Setting, sizes: Sequence[tuple[int, int]], rows: Sequence[int], bits: Sequence[int]
) -> list[tuple[str, ...]]:
    """Rows of the table of all these problems, until the time is up."""
    found: list[tuple[str, ...]] = []
    for N, K in sizes:
        for q in bits:
            if setting.is_over():
                return found
            one = Bench(cuda, Shape(N, K, q, GROUP), setting.device)
            found += [one.row(M) for M in rows if not setting.is_over()]
    return found


def one_row(cuda: Cuda, setting: Setting) -> tuple[str, list[Table]]:
    """M = 1, every matrix and number of planes."""
    sizes, bits = (SMALL, (2,)) if setting.rehearsal else (MATRICES, BITS)
    rows = measured(cuda, setting, sizes, (1,), bits)
    copied = f"Device-to-device copy in the same run: {copy_bandwidth(setting.device):.0f} GB/s."
    return f"{len(rows)} rows; {copied}", [as_table(f"One row. {copied}", HEADER, rows, setting)]


def by_rows(cuda: Cuda, setting: Setting) -> tuple[str, list[Table]]:
    """The first matrix at every number of rows."""
    sizes, numbers, bits = (SMALL, (2, 3), (2,)) if setting.rehearsal else (MATRICES[:1], ROWS, BITS)
    rows = measured(cuda, setting, sizes, numbers, bits)
    return f"{len(rows)} rows", [as_table("More rows.", HEADER, rows, setting)]


def others(cuda: Cuda, setting: Setting) -> tuple[str, list[Table]]:
    """The other matrices at the numbers of rows that matter most."""
    sizes, numbers = (SMALL, (3,)) if setting.rehearsal else (MATRICES[1:], (4, 16, 64, 512))
    rows = measured(cuda, setting, sizes, numbers, (3,))
    return f"{len(rows)} rows", [as_table("Other matrices.", HEADER, rows, setting)]


def crossovers(cuda: Cuda, setting: Setting) -> tuple[str, list[Table]]:
    """Microseconds of every kernel at every number of rows, for the choice in select.cc."""
    N, K = (SMALL if setting.rehearsal else MATRICES)[0]
    numbers = (3,) if setting.rehearsal else (1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)
    shape = Shape(N, K, 3, GROUP)
    one = Bench(cuda, shape, setting.device)
    names = [
        k for k in ("digits", *TILES, WIDE) if takes(k, torch.float16, shape, capability(setting.device))
    ]
    rows: list[Any] = []
    for M in numbers:
        if setting.is_over():
            break
        times = [f"{one.time(M, name)[0].median:.1f}" for name in names]
        rows.append((str(M), *times, f"{dense_time(N, K, M, setting.device).median:.1f}"))
    title = f"Every kernel at every number of rows, {N}x{K}, q = 3, us."
    return f"{len(rows)} rows", [as_table(title, ("M", *names, "cuBLAS fp16"), rows, setting)]
