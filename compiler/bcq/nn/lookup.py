# SPDX-License-Identifier: Apache-2.0
"""Rows of a packed matrix by index, as an embedding reads them, with the gradients of the scaling factors."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bcq.nn.decode import TILE, Factors, Shape, dense, signs, tiled
from bcq.nn.product import Gradients, Rule, group_sums, rounded


def lookup(
    indices: torch.Tensor,
    codes: torch.Tensor,
    factors: Factors,
    shape: Shape,
    rule: Rule,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Rows ``[..., K]`` of W, of type ``dtype``, for indices in ``[0, N)``; rounding as `bcq.nn.product`."""
    flat = indices.reshape(-1)
    rows: torch.Tensor = _Lookup.apply(  # type: ignore[no-untyped-call]
        flat, codes, factors.alpha_1, factors.alpha_rest, factors.offset, shape, rule, dtype
    )
    return rows.view(*indices.shape, shape.inputs)


class _Lookup(torch.autograd.Function):
    """The look-up of a list of indices."""

    @staticmethod
    def forward(
        ctx: Any,
        indices: torch.Tensor,
        codes: torch.Tensor,
        alpha_1: torch.Tensor,
        alpha_rest: torch.Tensor,
        offset: torch.Tensor | None,
        shape: Shape,
        rule: Rule,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.shape, ctx.rule = shape, rule
        ctx.save_for_backward(indices, codes, alpha_1, alpha_rest, offset)
        few, factors, part = _rows(indices, codes, Factors(alpha_1, alpha_rest, offset), shape)
        return dense(few, rounded(factors, dtype), part, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> Gradients:
        indices, codes, alpha_1, alpha_rest, offset = ctx.saved_tensors
        shape, dy = ctx.shape, grads[0]
        for_first, for_rest, for_offset = ctx.needs_input_grad[2:5]
        wide = torch.float64 if dy.dtype is torch.float64 else torch.float32
        few, _, part = _rows(indices, codes, Factors(alpha_1, alpha_rest, offset), shape)
        dy = dy.to(wide)

        def summed(values: torch.Tensor) -> torch.Tensor:
            """``[count, K]`` summed over groups and over equal indices, ``[T, G, 16]``."""
            sums = dy.new_zeros(shape.rows, shape.groups)
            sums.index_add_(0, indices, group_sums(values, part))
            return tiled(sums / shape.group_size if ctx.rule.scaled else sums, shape)

        d_first = summed(dy * signs(few, 0, part, wide)).to(alpha_1.dtype) if for_first else None
        planes = [summed(dy * signs(few, i, part, wide)) for i in range(1, shape.bits) if for_rest]
        d_rest = torch.stack(planes, dim=2).to(alpha_rest.dtype) if planes else None
        d_offset = summed(dy).to(offset.dtype) if for_offset else None
        return None, None, d_first, d_rest, d_offset, None, None, None


def _rows(
    indices: torch.Tensor, codes: torch.Tensor, factors: Factors, shape: Shape
) -> tuple[torch.Tensor, Factors, Shape]:
    """The rows that are asked for as a packed matrix of their own, in the order of the indices."""
    part = Shape(len(indices), shape.inputs, shape.bits, shape.group_size)
    padded = torch.nn.functional.pad(indices, (0, part.tiles * TILE - part.rows))
    tile, lane = padded.div(TILE, rounding_mode="floor"), padded.remainder(TILE)

    def pick(tensor: torch.Tensor) -> torch.Tensor:
        """``[T, ..., 16]`` to ``[T', ..., 16]``."""
        found = tensor.movedim(-1, 1)[tile, lane]
        return found.view(part.tiles, TILE, *found.shape[1:]).movedim(1, -1).contiguous()

    words = pick(codes.view(torch.int32)).view(torch.uint32)
    offset = None if factors.offset is None else pick(factors.offset.detach())
    return words, Factors(pick(factors.alpha_1.detach()), pick(factors.alpha_rest.detach()), offset), part
