# SPDX-License-Identifier: Apache-2.0
"""Multi-start alternating, the default: many starts, the best result per group after rounding to float16.

Alternating stops at local minima, and from the greedy start at poor ones. Uniform grids at several clipping
ratios are better starts. Clipped round-to-nearest itself and the solution with one plane less are candidates
too, so the error is never above either.
"""

from __future__ import annotations

import numpy as np

from bcq.solver.alternating import alternate
from bcq.solver.greedy import greedy
from bcq.solver.groups import Float32, Groups, assign, error, sort_groups, with_table
from bcq.solver.levels import Float64, as_stored, ordered, sign_table
from bcq.solver.uniform import clipped_rtn, grid_with_zero, uniform_grid

START_RATIOS = (0.95, 0.8, 0.65, 0.5, 0.35)


def multistart(weights: Float32, bits: int, offset: bool) -> Float64:
    """Coefficients ``[R, q]`` or ``[R, q + 1]``, already rounded to float16, of groups ``[R, width]``."""
    symmetric = _grow(sort_groups(weights, sign_table(1, False)), weights, bits)
    if not offset:
        return symmetric
    groups = sort_groups(weights, sign_table(1, True))
    return _grow(groups, weights, bits, np.hstack([symmetric, np.zeros((len(weights), 1))]))


def keep_better(groups: Groups, best: Float64, candidate: Float64) -> Float64:
    """Per group, whichever errs less; both as stored."""
    better = error(groups, assign(groups, candidate)) < error(groups, assign(groups, best))
    return np.where(better[:, None], candidate, best)


def _grow(groups: Groups, weights: Float32, bits: int, extra: Float64 | None = None) -> Float64:
    """Solves with 1, 2, ... ``bits`` planes, each also from the one before; ``extra`` joins the last."""
    best: Float64 | None = None
    for planes in range(1, bits + 1):
        groups = with_table(groups, sign_table(planes, groups.table.offset))
        starts = [ordered(greedy(weights, planes, groups.table.offset), planes)]
        starts += _grids(groups) if planes == bits else [uniform_grid(groups, START_RATIOS[2])]
        if best is not None:
            starts.append(_one_plane_more(groups, best))
        if extra is not None and planes == bits:
            starts.append(extra)
        best = _best_of(groups, starts)
    assert best is not None
    return best


def _grids(groups: Groups) -> list[Float64]:
    uniform = [uniform_grid(groups, ratio) for ratio in START_RATIOS]
    return [clipped_rtn(groups), *uniform, grid_with_zero(groups, 0.9)]


def _best_of(groups: Groups, starts: list[Float64]) -> Float64:
    best = as_stored(starts[0])
    for start in starts:
        best = keep_better(groups, best, as_stored(start))
        best = keep_better(groups, best, as_stored(alternate(groups, start)))
    return best


def _one_plane_more(groups: Groups, fewer: Float64) -> Float64:
    """The solution with one plane less, and a last alpha that halves what it leaves over."""
    bits = groups.table.bits
    smaller = with_table(groups, sign_table(bits - 1, groups.table.offset))
    left = error(smaller, assign(smaller, fewer))
    alpha = np.sqrt(np.where(np.isfinite(left), left, 0.0) / groups.width) / 2
    alphas = np.hstack([fewer[:, : bits - 1], alpha[:, None]])
    return ordered(np.hstack([alphas, fewer[:, bits - 1 :]]), bits)
