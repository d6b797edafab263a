# SPDX-License-Identifier: Apache-2.0
"""Error feedback: inputs take their codes one after the other, each making up for the errors before it.

With H = U^T U the error of a row is |U e|^2, and its last term depends on the last input alone, the one
before on the last two, and so on: walking backwards, each weight is rounded to the level that is nearest
once all errors so far are counted in. Source: Babai's nearest plane; the same codes as GPTQ (Frantar et al.
2022, arXiv 2210.17323) in the same order of inputs, without an inverse.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bcq.solver.codebook import Codebook
from bcq.solver.groups import Float32

BLOCK = 32  # inputs between two matrix products


def feed_back(
    target: Float32, factor: Float32, order: NDArray[np.int64], books: list[Codebook], group_size: int
) -> Float32:
    """The levels that weights ``[K, N]`` take.

    Args:
        target: float32 ``[K, N]``.
        factor: upper triangular U of H with its inputs in ``order``.
        order: the inputs, first those that take their codes last.
        books: one codebook a group.
        group_size: g.
    """
    inputs, rows = target.shape
    dense = np.empty((inputs, rows), np.float32)
    errors = np.empty((inputs, rows), np.float32)  # in `order`
    for end in range(inputs, 0, -BLOCK):
        begin = max(end - BLOCK, 0)
        pull = factor[begin:end, end:] @ errors[end:]
        for j in range(end - 1, begin - 1, -1):
            column = order[j]
            weight = target[column]
            wanted = weight - pull[j - begin] / factor[j, j]
            dense[column] = books[column // group_size].nearest(wanted)
            errors[j] = dense[column] - weight
            pull[: j - begin] += factor[begin:j, j, None] * errors[j]
    return dense
