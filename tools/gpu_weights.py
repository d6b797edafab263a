# SPDX-License-Identifier: Apache-2.0
"""Random packed weights as PyTorch tensors, and what they stand for in float64: for tools/gpu_check.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bcq.kernels.cuda import Cuda, CudaWeight

TILE_ROWS, WORD_BITS = 16, 32


@dataclass(frozen=True)
class Shape:
    """Sizes of a matrix ``[N, K]``: q planes, groups of g inputs (0: one group), maybe an offset.

    Its codes may hold further planes, which no product reads.
    """

    N: int
    K: int
    q: int
    g: int
    offset: bool = False
    further: int = 0

    @property
    def groups(self) -> int:
        """G."""
        return 1 if self.g in (0, self.K) else -(-self.K // self.g)

    @property
    def tiles(self) -> int:
        """T."""
        return -(-self.N // TILE_ROWS)

    @property
    def chunks(self) -> int:
        """C."""
        return -(-self.K // WORD_BITS)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, alphas and offsets that one product reads."""
        factors = self.q + int(self.offset)
        return self.tiles * TILE_ROWS * (4 * self.chunks * self.q + 2 * self.groups * factors)


@dataclass(frozen=True)
class Weight:
    """Tensors of one packed matrix in the layout of ``ops/README.md``; codes are int32 bits."""

    shape: Shape
    codes: torch.Tensor
    alpha: torch.Tensor  # float16 [q, T, G, 16]: planes lie apart here, see addresses()
    offset: torch.Tensor | None
    alpha_rest: torch.Tensor

    def addresses(self) -> CudaWeight:
        """As the library takes it; the tensors must outlive it."""
        s = self.shape
        return CudaWeight(
            codes=self.codes.data_ptr(),
            alpha_1=self.alpha[0].data_ptr(),
            alpha_rest=self.alpha_rest.data_ptr() if s.q > 1 else None,
            offset=None if self.offset is None else self.offset.data_ptr(),
            rows=s.N,
            inputs=s.K,
            group_size=s.g or s.K,
            bits=s.q,
            planes=s.q + s.further,
        )

    def dense(self) -> torch.Tensor:
        """W in float64, ``[N, K]``."""
        s = self.shape
        total = torch.zeros(
            s.tiles * TILE_ROWS, s.chunks * WORD_BITS, dtype=torch.float64, device=self.codes.device
        )
        shifts = torch.arange(WORD_BITS, device=self.codes.device, dtype=torch.int32)
        group_of = torch.arange(s.chunks * WORD_BITS, device=self.codes.device) // (s.g or s.K)
        group_of.clamp_(max=s.groups - 1)
        for plane in range(s.q):
            words = self.codes[:, :, plane].permute(0, 2, 1).reshape(-1, s.chunks)  # [rows, C]
            signs = ((words[:, :, None] >> shifts) & 1).reshape(-1, s.chunks * WORD_BITS).double() * 2 - 1
            total += _by_row(self.alpha[plane])[:, group_of] * signs
        if self.offset is not None:
            total += _by_row(self.offset)[:, group_of]
        return total[: s.N, : s.K]


def _by_row(factor: torch.Tensor) -> torch.Tensor:
    """``[T, G, 16]`` to float64 ``[16 T, G]``."""
    return factor.permute(0, 2, 1).reshape(-1, factor.shape[1]).double()


def random_weight(shape: Shape, device: str, seed: int = 0) -> Weight:
    """Random bits and alphas that halve from plane to plane; padding is zero."""
    random = torch.Generator(device=device).manual_seed(seed)
    size = (shape.tiles, shape.chunks, shape.q + shape.further, TILE_ROWS)
    codes = torch.randint(-(2**31), 2**31, size, dtype=torch.int64, device=device, generator=random).to(
        torch.int32
    )
    if shape.N % TILE_ROWS:
        codes[-1, :, :, shape.N % TILE_ROWS :] = 0
    if shape.K % WORD_BITS:
        codes[:, -1] &= (1 << shape.K % WORD_BITS) - 1
    factors = (shape.tiles, shape.groups, TILE_ROWS)
    halves = 0.5 ** torch.arange(shape.q, device=device)[:, None, None, None]
    alpha = ((0.5 + torch.rand(shape.q, *factors, device=device, generator=random)) * halves / 32).half()
    offset = (torch.randn(*factors, device=device, generator=random) / 64).half() if shape.offset else None
    return Weight(shape, codes, alpha, offset, alpha[1:].permute(1, 2, 0, 3).contiguous())


def stream_of(tensor: torch.Tensor) -> int:
    """The current stream of the tensor's device, as the library takes it."""
    return int(torch.cuda.current_stream().cuda_stream) if tensor.is_cuda else 0


def multiply(
    cuda: Cuda, a: torch.Tensor, weight: Weight, *, kernel: str | None = None, level: int = 0
) -> torch.Tensor:
    """Y = A W^T on the current stream; outputs that nobody writes stay NaN."""
    y = torch.full((a.shape[0], weight.shape.N), float("nan"), dtype=a.dtype, device=a.device)
    into(cuda, y, a, weight, kernel=kernel, level=level)
    return y


def into(
    cuda: Cuda,
    y: torch.Tensor,
    a: torch.Tensor,
    weight: Weight,
    *,
    kernel: str | None = None,
    level: int = 0,
) -> None:
    """`multiply` into memory that is there."""
    cuda.matmul(
        weight.addresses(),
        M=a.shape[0],
        dtype=str(a.dtype).removeprefix("torch."),
        a=a.data_ptr(),
        a_stride=a.stride(0),
        y=y.data_ptr(),
        y_stride=y.stride(0),
        stream=stream_of(a),
        kernel=kernel,
        accuracy_level=level,
    )
