# SPDX-License-Identifier: Apache-2.0
"""``torch.ops.bcq.matmul``: the product on packed codes as an operator of torch.compile and torch.export.

Layers call the same function without the operator, whose dispatch takes as long as a small product.
"""

from __future__ import annotations

import torch

from bcq.nn.decode import Factors, Shape
from bcq.nn.product import multiply


@torch.library.custom_op("bcq::matmul", mutates_args=())
def matmul(
    x: torch.Tensor,
    codes: torch.Tensor,
    alpha_1: torch.Tensor,
    alpha_rest: torch.Tensor,
    offset: torch.Tensor | None,
    rows: int,
    inputs: int,
    group_size: int,
) -> torch.Tensor:
    """Y = X W^T by the kernels of the device, CPU or CUDA, where they are faster; no gradient.

    Args:
        x: ``[M, K]``.
        codes: uint32 ``[T, C, q, 16]``, as the factors in the layout of ``ops/README.md``.
        alpha_1: float16 ``[T, G, 16]``; any type for an ``x`` of float64.
        alpha_rest: ``[T, G, q-1, 16]`` of the same type.
        offset: ``[T, G, 16]`` of the same type, or None.
        rows: N.
        inputs: K.
        group_size: g.

    Returns:
        ``[M, N]`` of the type of ``x``.
    """
    shape = Shape(rows, inputs, codes.shape[2], group_size)
    return multiply(x, codes, Factors(alpha_1, alpha_rest, offset), shape)


@matmul.register_fake
def _sizes(
    x: torch.Tensor,
    codes: torch.Tensor,
    alpha_1: torch.Tensor,
    alpha_rest: torch.Tensor,
    offset: torch.Tensor | None,
    rows: int,
    inputs: int,
    group_size: int,
) -> torch.Tensor:
    return x.new_empty(len(x), rows)
