# SPDX-License-Identifier: Apache-2.0
"""Y = X W^T on packed codes, with the gradients of X and of the scaling factors, and no dense weight kept.

Source: Kwon et al. 2022 (arXiv 2210.03858), section 3.2: dX = dY W and d alpha_i = ((dY)^T X B_i^T) / g.
The division by the group size is the paper's "empirical stabilizer"; without it the gradient is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from bcq.bcq import ceil_div
from bcq.nn import on_cuda
from bcq.nn.decode import (
    TILE,
    WORD,
    Array,
    Factors,
    Shape,
    blocks,
    dense,
    in_parts,
    kernels,
    packed,
    signs,
    tiled,
    tiles_of,
)
from bcq.packing import PackedWeight

if TYPE_CHECKING:
    from bcq.kernels.core import Core

PANEL = 64  # tokens; as many as kernels take at once
KERNEL_ROWS = 32  # up to here the kernels beat decoding and a dense product, from 64 on they do not (q = 3)
Gradients = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Rule:
    """How gradients of factors are computed.

    Attributes:
        scaled: divide them by the group size, as the paper does.
        by_kernel: let a kernel compute X B^T where there is one; False takes dense products, for comparison.
    """

    scaled: bool = True
    by_kernel: bool = True


def product(x: torch.Tensor, codes: torch.Tensor, factors: Factors, shape: Shape, rule: Rule) -> torch.Tensor:
    """``[..., K]`` times W^T: ``[..., N]`` of the type of ``x``; differentiable in ``x`` and the factors.

    float64 is computed with the factors as they are; any other type with the factors rounded to float16, as
    an adapter stores them.
    """
    flat = x.reshape(-1, shape.inputs)
    y: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
        flat, codes, factors.alpha_1, factors.alpha_rest, factors.offset, shape, rule
    )
    return y.view(*x.shape[:-1], shape.rows)


class _Product(torch.autograd.Function):
    """The product of a matrix ``[M, K]``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        codes: torch.Tensor,
        alpha_1: torch.Tensor,
        alpha_rest: torch.Tensor,
        offset: torch.Tensor | None,
        shape: Shape,
        rule: Rule,
    ) -> torch.Tensor:
        ctx.shape, ctx.rule = shape, rule
        trained = any(ctx.needs_input_grad[2:5])
        ctx.save_for_backward(x if trained else None, codes, alpha_1, alpha_rest, offset)
        ctx.dtype = x.dtype
        return multiply(x, codes, rounded(Factors(alpha_1, alpha_rest, offset), x.dtype), shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Gradients:
        x, codes, alpha_1, alpha_rest, offset = ctx.saved_tensors
        factors, dy = Factors(alpha_1, alpha_rest, offset), grads[0].contiguous()
        for_x, _, for_first, for_rest, for_offset = ctx.needs_input_grad[:5]
        dx = _input_gradient(dy, codes, rounded(factors, ctx.dtype), ctx.shape) if for_x else None
        planes = [0] * for_first + list(range(1, ctx.shape.bits)) * for_rest
        found = plane_gradients(dy, x, codes, planes, ctx.shape, ctx.rule) if planes else []
        d_first = _like(found[0], alpha_1) if for_first else None
        d_rest = _like(_stack(found[for_first:], alpha_rest), alpha_rest) if for_rest else None
        d_offset = _like(_offset_gradient(dy, x, ctx.shape, ctx.rule), offset) if for_offset else None
        return dx, None, d_first, d_rest, d_offset, None, None


def rounded(factors: Factors, dtype: torch.dtype) -> Factors:
    """Factors as a product with activations of this type takes them."""
    if dtype is torch.float64:
        return factors
    half = torch.float16
    offset = None if factors.offset is None else factors.offset.to(half)
    return Factors(factors.alpha_1.to(half), factors.alpha_rest.to(half), offset)


def multiply(x: torch.Tensor, codes: torch.Tensor, factors: Factors, shape: Shape) -> torch.Tensor:
    """`product` of a matrix ``[M, K]`` without a gradient; by kernels where they are faster."""
    core = _core_for(x)
    if core is not None and len(x) <= KERNEL_ROWS:
        return _by_kernel(core, x, packed(codes, factors, shape), shape)
    cuda = on_cuda.kernels_for(x)
    if cuda is not None:
        return on_cuda.launch(cuda, x, codes, factors, shape)
    y = x.new_empty(len(x), shape.rows)
    for rows, weight in _dense_blocks(codes, factors, shape, x.dtype):
        torch.mm(x, weight.T, out=y[:, rows])
    return y


def _input_gradient(dy: torch.Tensor, codes: torch.Tensor, factors: Factors, shape: Shape) -> torch.Tensor:
    dx = dy.new_zeros(len(dy), shape.inputs)
    for rows, weight in _dense_blocks(codes, factors, shape, dy.dtype):
        dx.addmm_(dy[:, rows], weight)
    return dx


def _dense_blocks(
    codes: torch.Tensor, factors: Factors, shape: Shape, dtype: torch.dtype
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Row ranges and their weights, one block in memory at a time."""
    for first, last, rows in blocks(shape):
        part = Shape(rows, shape.inputs, shape.bits, shape.group_size)
        start = first * TILE
        yield (
            slice(start, start + rows),
            dense(codes[first:last], factors.between(first, last), part, dtype),
        )


def plane_gradients(
    dy: torch.Tensor, x: torch.Tensor, codes: torch.Tensor, planes: list[int], shape: Shape, rule: Rule
) -> list[torch.Tensor]:
    """Gradients of the alphas of some planes, each ``[T, G, 16]`` float32 (float64 for float64).

    The dense gradient of W costs 1 for all planes; X B^T by a kernel 0.33 a plane with one group, 0.8 with
    groups of 128 (512 tokens, 4096 x 1024).
    """
    core = _core_for(x) if rule.by_kernel else None
    few = len(planes) * (1 if shape.groups == 1 else 3) <= 3
    if core is not None and few:
        found = [_sums_by_kernel(core, dy, x, codes, plane, shape) for plane in planes]
    else:
        found = _sums_by_weight(dy, x, codes, planes, shape)
    return [tiled(sums / shape.group_size if rule.scaled else sums, shape) for sums in found]


def _sums_by_kernel(
    core: Core, dy: torch.Tensor, x: torch.Tensor, codes: torch.Tensor, plane: int, shape: Shape
) -> torch.Tensor:
    """``[N, G]``: sum over tokens of dY times X B^T, group by group, B^T from a kernel for one plane."""
    x_rows, dy_rows = x.detach().contiguous().numpy(), dy.detach().numpy()

    def sums_of(first: int, last: int) -> Array:
        """Those of some tiles; products of `PANEL` tokens at a time stay in the cache."""
        rows = min(last * TILE, shape.rows) - first * TILE
        sums = np.zeros((rows, shape.groups), np.float32)
        for group in range(shape.groups):
            inputs, ones = _one_plane(codes[first:last], plane, group, rows, shape)
            slices = np.ascontiguousarray(x_rows[:, inputs])
            for start in range(0, len(slices), PANEL):
                projected = core.matmul(slices[start : start + PANEL], ones)
                projected *= dy_rows[start : start + PANEL, first * TILE : first * TILE + rows]
                sums[:, group] += projected.sum(axis=0)
        return sums

    return torch.from_numpy(np.concatenate(in_parts(shape, sums_of)))


def _one_plane(
    codes: torch.Tensor, plane: int, group: int, rows: int, shape: Shape
) -> tuple[slice, PackedWeight]:
    """The inputs of a group, and B of one plane for them as a matrix of one bit whose factors are 1."""
    width = shape.group_size if shape.groups > 1 else shape.inputs
    first, last = group * width, min((group + 1) * width, shape.inputs)
    chunks = slice(first // WORD, ceil_div(last, WORD))
    weight = PackedWeight(
        codes=np.ascontiguousarray(codes.numpy()[:, chunks, plane : plane + 1]),
        alpha_1=np.ones((len(codes), 1, TILE), np.float16),
        alpha_rest=np.zeros((len(codes), 1, 0, TILE), np.float16),
        offset=np.zeros(0, np.float16),
        inputs=last - first,
        rows=rows,
        group_size=last - first,
    )
    return slice(first, last), weight


def _sums_by_weight(
    dy: torch.Tensor, x: torch.Tensor, codes: torch.Tensor, planes: list[int], shape: Shape
) -> list[torch.Tensor]:
    """The same through the dense gradient of W, a block of rows at a time."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    sums = [x.new_empty(shape.rows, shape.groups, dtype=wide) for _ in planes]
    for first, last, rows in blocks(shape):
        part = Shape(rows, shape.inputs, shape.bits, shape.group_size)
        place = slice(first * TILE, first * TILE + rows)
        gradient = torch.mm(dy[:, place].T, x).to(wide)
        for total, plane in zip(sums, planes, strict=True):
            total[place] = group_sums(gradient * signs(codes[first:last], plane, part, wide), part)
    return sums


def group_sums(values: torch.Tensor, shape: Shape) -> torch.Tensor:
    """``[R, K]`` to ``[R, G]``: sums over the inputs of each group."""
    missing = shape.groups * shape.group_size - shape.inputs if shape.groups > 1 else 0
    padded = torch.nn.functional.pad(values, (0, missing)) if missing else values
    return padded.reshape(len(values), shape.groups, -1).sum(dim=2)


def _offset_gradient(dy: torch.Tensor, x: torch.Tensor, shape: Shape, rule: Rule) -> torch.Tensor:
    sums = torch.mm(dy.T, group_sums(x, shape))
    return tiled(sums / shape.group_size if rule.scaled else sums, shape)


def _by_kernel(core: Core, x: torch.Tensor, weight: PackedWeight, shape: Shape) -> torch.Tensor:
    rows = x.detach().contiguous().numpy()
    parts = in_parts(shape, lambda a, b: core.matmul(rows, tiles_of(weight, a, b)))
    return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))


def _core_for(x: torch.Tensor) -> Core | None:
    """The kernels, where they take these activations."""
    usable = x.dtype is torch.float32 and x.device.type == "cpu" and len(x) > 0
    return kernels() if usable else None


def _stack(planes: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.stack(planes, dim=2) if planes else torch.zeros_like(like)


def _like(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return gradient.to(parameter.dtype)
