# SPDX-License-Identifier: Apache-2.0
"""Times of the CUDA kernels and of cuBLAS on the same device in the same run: for tools/gpu_check.py.

A time is the median of graph replays, each a chain of launches over copies of the weights that together are
several times the L2 cache, so that every launch reads its weights from memory, as the layers of a model do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bcq.cuda import Cuda, CudaWeight
from gpu_checks import TILES, activations
from gpu_weights import Shape, into, random_weight

ROTATED_BYTES = 400e6  # of weights in one chain: more than six times the 60 MB of an H200's L2
MOST_COPIES = 24
REPLAYS = 15
COPY_BYTES = 1 << 30
MATRICES = ((17408, 5120), (4096, 4096), (14336, 4096), (4096, 14336))
BITS = (2, 3, 4)
ROWS = (1, 2, 4, 8, 16, 32, 64, 512)
GROUP = 128


@dataclass(frozen=True)
class Timing:
    """Microseconds of one launch: the median of the replays, and their smallest and largest."""

    median: float
    least: float
    most: float


def chained(launches: Sequence[Callable[[], object]]) -> Timing:
    """Time of a launch in a captured chain of them."""
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    times = []
    for _ in range(REPLAYS + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(launches))
    kept = times[3:]  # the first ones warm up
    return Timing(statistics.median(kept), min(kept), max(kept))


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy, bytes read and written."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / chained([lambda: target.copy_(source)] * 4).median / 1e3


def copies_of(nbytes: int) -> int:
    """How many weights a chain walks through."""
    return max(2, min(MOST_COPIES, round(ROTATED_BYTES / nbytes)))


def dense_time(N: int, K: int, M: int) -> Timing:
    """Float16 in cuBLAS, ``[M, K]`` times ``[K, N]``."""
    weights = [torch.randn(N, K, device="cuda").half() for _ in range(copies_of(2 * N * K))]
    a = activations(M, K, torch.float16, "cuda")
    y = torch.empty(M, N, dtype=torch.float16, device="cuda")
    return chained([lambda w=w: torch.matmul(a, w.T, out=y) for w in weights])  # type: ignore[misc]


def kernel_time(cuda: Cuda, shape: Shape, M: int, kernel: str | None) -> Timing:
    """One of our kernels, or the selected one."""
    weights = [random_weight(shape, "cuda", seed) for seed in range(copies_of(shape.nbytes))]
    a = activations(M, shape.K, torch.float16, "cuda")
    y = torch.empty(M, shape.N, dtype=torch.float16, device="cuda")
    return chained([lambda w=w: into(cuda, y, a, w, kernel=kernel) for w in weights])  # type: ignore[misc]


def rows_of(cuda: Cuda, N: int, K: int, bandwidth: float, until: Callable[[], bool]) -> list[tuple[str, ...]]:
    """Table rows of one matrix: every number of rows and bits, beside cuBLAS."""
    found: list[tuple[str, ...]] = []
    capability = torch.cuda.get_device_capability()
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for M in ROWS:
        if until():
            break
        dense = dense_time(N, K, M)
        for q in BITS:
            shape = Shape(N, K, q, GROUP)
            chosen = cuda.select(
                CudaWeight(0, 0, None, None, N, K, GROUP, q),
                M=M,
                dtype="float16",
                sm=10 * capability[0] + capability[1],
                processors=processors,
            )
            ours = kernel_time(cuda, shape, M, None)
            rate = (shape.nbytes + 2 * M * (N + K)) / ours.median / 1e3
            found.append(
                (
                    f"{N}x{K}",
                    str(M),
                    str(q),
                    str(chosen),
                    f"{ours.median:.1f} ({ours.least:.1f} to {ours.most:.1f})",
                    f"{rate:.0f}",
                    f"{100 * rate / bandwidth:.0f} %",
                    f"{dense.median:.1f}",
                    f"{dense.median / ours.median:.2f}",
                )
            )
    return found


def crossovers(cuda: Cuda, N: int, K: int, q: int, until: Callable[[], bool]) -> list[tuple[str, ...]]:
    """Microseconds of every kernel at every number of rows, for the choice in select.cc."""
    found = []
    for M in (1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 128, 256, 512):
        if until():
            break
        times = [kernel_time(cuda, Shape(N, K, q, GROUP), M, name) for name in ("digits", *TILES)]
        found.append((str(M), *(f"{time.median:.1f}" for time in times)))
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
