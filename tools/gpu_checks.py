# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels must keep on a real device: for tools/gpu_check.py. Each check returns a line.

They take any device that PyTorch has, so that a test runs them on the CPU with the emulated library.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from bcq.kernels.cuda import Cuda
from gpu_weights import Shape, into, multiply, random_weight, stream_of

# Relative errors (Frobenius) against float64 on random data. Results are rounded to 2^-11 (float16) or 2^-8
# (bfloat16), a half of that in the mean; tile kernels round weights once to the same type.
LARGEST = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6}
TILES = ("tiles8", "tiles16", "tiles32", "tiles64")
WIDE = "wide128"
RAGGED = (
    Shape(17, 33, 1, 0),
    Shape(40, 300, 2, 64, True),
    Shape(75, 520, 3, 32),
    Shape(33, 129, 4, 128, True),
)
WIDE_CODES = (Shape(96, 640, 5, 96, True), Shape(100, 1000, 8, 0))
LARGE = (
    Shape(4096, 4096, 2, 128),
    Shape(4096, 14336, 3, 128),
    Shape(17408, 5120, 3, 128),
    Shape(5120, 5120, 4, 64, True),
)


class Failed(AssertionError):
    """A kernel does not keep what it must."""


def demand(well: bool, what: str) -> None:
    """Raises Failed unless all is well."""
    if not well:
        raise Failed(what)


def activations(rows: int, inputs: int, dtype: torch.dtype, device: str, seed: int = 1) -> torch.Tensor:
    """Standard normal values."""
    random = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(rows, inputs, device=device, generator=random).to(dtype)


def relative_error(y: torch.Tensor, exact: torch.Tensor) -> float:
    """|y - exact| / |exact|; NaN counts as infinite."""
    error = float(torch.linalg.norm(y.double() - exact) / torch.linalg.norm(exact))
    return error if error == error else float("inf")


def takes(kernel: str, dtype: torch.dtype, shape: Shape, sm: int = 90) -> bool:
    """Whether a kernel takes a type and number of planes on a device of capability ``sm``."""
    if kernel == "generic":
        return True
    if kernel == WIDE and sm != 90:
        return False
    old = dtype == torch.bfloat16 and sm < 80
    return shape.q <= 4 and (kernel == "digits" or not (old or dtype == torch.float32))


def capability(device: str) -> int:
    """90 for a device of capability 9.0; the emulated one is such a device."""
    if device == "cpu":
        return 90
    major, minor = torch.cuda.get_device_capability()
    return 10 * int(major) + int(minor)


def parity(
    cuda: Cuda, device: str, shapes: tuple[Shape, ...], rows: tuple[int, ...], kernels: tuple[str, ...]
) -> str:
    """Every one of some kernels that takes a shape and type agrees with float64."""
    worst: dict[str, float] = {}
    count, sm = 0, capability(device)
    for shape in shapes:
        weight = random_weight(shape, device)
        dense = weight.dense()
        slow = shape.N * shape.K > 1 << 20
        for M, dtype, kernel in itertools.product(rows, LARGEST, kernels):
            if not takes(kernel, dtype, shape, sm) or (kernel == "generic" and slow and M > 4):
                continue
            a = activations(M, shape.K, dtype, device)
            error = relative_error(multiply(cuda, a, weight, kernel=kernel), a.double() @ dense.T)
            demand(error < LARGEST[dtype], f"{kernel} {shape} M={M} {dtype}: relative error {error:.2e}")
            name = f"{kernel} {str(dtype).removeprefix('torch.')}"
            worst[name] = max(worst.get(name, 0.0), error)
            count += 1
    if count == 0:
        return f"none of {', '.join(kernels)} is for compute capability {sm / 10}"
    return f"{count} problems; worst " + ", ".join(
        f"{name} {error:.1e}" for name, error in sorted(worst.items())
    )


def ragged(cuda: Cuda, device: str, kernels: tuple[str, ...]) -> str:
    """`parity` on small sizes with tails everywhere."""
    rehearsal = device == "cpu"
    shapes, rows = (RAGGED[:1], (3,)) if rehearsal else (RAGGED + WIDE_CODES, (1, 2, 3, 9, 65, 300))
    return parity(cuda, device, shapes, rows, kernels)


def large(cuda: Cuda, device: str, kernels: tuple[str, ...]) -> str:
    """`parity` on matrices of models."""
    return parity(cuda, device, LARGE, (1, 2, 4, 16, 64, 200), kernels)


def middle(device: str) -> Shape:
    """A matrix of a middling size, on the CPU of a small one."""
    return Shape(40, 200, 2, 64, True) if device == "cpu" else Shape(2080, 1984, 3, 64, True)


def selected(cuda: Cuda, device: str) -> str:
    """What is selected without a name agrees with float64, also for codes of more planes and rows apart."""
    shape = middle(device)
    rows = (1, 3) if device == "cpu" else (1, 2, 3, 8, 16, 33, 130)
    weights = [random_weight(one, device) for one in (shape, replace(shape, q=1, further=2))]
    for M, weight in itertools.product(rows, weights):
        a = activations(M, 2 * shape.K, torch.float16, device)[:, : shape.K]
        error = relative_error(multiply(cuda, a, weight), a.double() @ weight.dense().T)
        demand(error < LARGEST[torch.float16], f"{weight.shape} M={M}: relative error {error:.2e}")
    weight = weights[0]
    demand(
        multiply(cuda, activations(0, shape.K, torch.float16, device), weight).shape == (0, shape.N), "M = 0"
    )
    return f"rows {rows}, one of three planes too, strided; M = 0 launches nothing"


def same_bits(cuda: Cuda, device: str) -> str:
    """Repeated runs give the same bits."""
    shape = middle(device)
    rows, repeats = ((3,), 1) if device == "cpu" else ((1, 5, 40), 20)
    weight = random_weight(shape, device)
    kernels = [k for k in ("digits", *TILES, WIDE) if takes(k, torch.float16, shape, capability(device))]
    for M, kernel in itertools.product(rows, kernels):
        a = activations(M, shape.K, torch.float16, device)
        first = multiply(cuda, a, weight, kernel=kernel)
        for _ in range(repeats):
            demand(
                torch.equal(multiply(cuda, a, weight, kernel=kernel), first), f"{kernel} M={M}: bits differ"
            )
    return f"{repeats} runs of each kernel"


def gather(cuda: Cuda, device: str) -> str:
    """Rows agree with float64 to float32's rounding, and an index that does not exist gives NaN."""
    shape = middle(device)
    weight = random_weight(shape, device)
    indices = torch.tensor([0, shape.N - 1, -1, -shape.N, 3, shape.N], device=device)
    y = torch.zeros(6, shape.K, device=device)
    cuda.gather(weight.addresses(), count=6, indices=indices.data_ptr(), y=y.data_ptr(), stream=stream_of(y))
    error = relative_error(y[:5], weight.dense()[indices[:5]])
    demand(error < LARGEST[torch.float32], f"gather: relative error {error:.2e}")
    demand(bool(y[5].isnan().all()), "gather: an index outside gave numbers")
    return f"relative error {error:.1e}"


def on_a_side_stream(cuda: Cuda, device: str) -> str:
    """Work goes to the stream that is given: it waits for what runs there and for nothing else."""
    shape = middle(device)
    weight = random_weight(shape, "cuda")
    a = activations(4, shape.K, torch.float16, "cuda")
    exact = multiply(cuda, a, weight)
    late = torch.zeros_like(a)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(
            50_000_000
        )  # some 25 ms: `late` is filled after the launches below have been queued
        late.copy_(a)
        y = multiply(cuda, late, weight)
    side.synchronize()
    demand(torch.equal(y, exact), "a side stream: other bits, so the launch went elsewhere")
    return "waits for its own stream"


def replay(cuda: Cuda, device: str, rows: tuple[int, ...] = (1, 2, 5, 40)) -> str:
    """A captured launch gives the bits of a plain one, with new activations in each replay."""
    shape = middle(device)
    weight = random_weight(shape, "cuda")
    for M in rows:
        a = activations(M, shape.K, torch.float16, "cuda")
        y = torch.zeros(M, shape.N, dtype=torch.float16, device="cuda")
        into(cuda, y, a, weight)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            into(cuda, y, a, weight)
        for seed in range(3):
            a.copy_(activations(M, shape.K, torch.float16, "cuda", seed))
            graph.replay()
            demand(torch.equal(y, multiply(cuda, a, weight)), f"graph: M={M}, replay {seed} differs")
    return f"3 replays at rows {rows}"
