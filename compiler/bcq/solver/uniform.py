# SPDX-License-Identifier: Apache-2.0
"""Round-to-nearest with clipping: the yardstick, and good places to start from.

A uniform grid of 2^q levels is a binary code whose alphas are step/2 times 1, 2, 4, ...: sums of signed
powers of two are the odd integers. So every grid below is written as coefficients of a binary code and can be
compared, and improved, like any other.
"""

from __future__ import annotations

import numpy as np

from bcq.solver.groups import Groups, assign, error
from bcq.solver.levels import Float64, as_stored

CLIPPING = tuple(float(ratio) for ratio in np.linspace(1.0, 0.2, 33))


def uniform_grid(groups: Groups, ratio: float) -> Float64:
    """Coefficients of the grid that covers ``ratio`` of each group's range.

    The outermost cells end at the clipped range, as integers do that round to nearest. Without an offset the
    grid is symmetric; with one it lies between the group's clipped minimum and maximum.
    """
    bits = groups.table.bits
    low, high = _range(groups, ratio)
    alpha = ((high - low) / 2 / (2**bits - 1))[:, None] * 2.0 ** np.arange(bits - 1, -1, -1)
    return np.hstack([alpha, ((high + low) / 2)[:, None]]) if groups.table.offset else alpha


def grid_with_zero(groups: Groups, ratio: float) -> Float64:
    """A symmetric grid that has zero among its levels: the last two alphas are equal, so they can cancel."""
    coefficients = uniform_grid(groups, ratio)
    bits = groups.table.bits
    if bits > 1:
        half = _half_range(groups, ratio) / 2 ** (bits - 1)
        coefficients[:, : bits - 1] = half[:, None] * 2.0 ** np.arange(bits - 2, -1, -1)
        coefficients[:, bits - 1] = coefficients[:, bits - 2]
    return coefficients


def clipped_rtn(groups: Groups) -> Float64:
    """Per group, the grid of :func:`uniform_grid` whose clipping ratio errs least once stored as float16."""
    best = as_stored(uniform_grid(groups, CLIPPING[0]))
    best_error = error(groups, assign(groups, best))
    for ratio in CLIPPING[1:]:
        grid = as_stored(uniform_grid(groups, ratio))
        grid_error = error(groups, assign(groups, grid))
        better = grid_error < best_error
        best[better], best_error[better] = grid[better], grid_error[better]
    return best


def _range(groups: Groups, ratio: float) -> tuple[Float64, Float64]:
    high = groups.values[:, -1].astype(np.float64) * ratio
    low = groups.values[:, 0].astype(np.float64) * ratio if groups.table.offset else -high
    return low, high


def _half_range(groups: Groups, ratio: float) -> Float64:
    low, high = _range(groups, ratio)
    return (high - low) / 2
