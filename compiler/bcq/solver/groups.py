# SPDX-License-Identifier: Apache-2.0
"""Groups of weights, sorted once, so that assigning codes and fitting alphas cost a binary search.

The best code of a weight is its nearest level, so each level owns an interval of the sorted group. Least
squares and the error need only how many weights an interval holds and their sum; both come from prefix
sums. One alternation thus costs O(2^q log g) a group, not O(2^q g).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bcq.solver.levels import Float64, SignTable

Float32 = NDArray[np.float32]
RIDGE = 1e-9  # relative; planes that coincide (constant groups) share their alpha instead of failing


@dataclass(frozen=True)
class Groups:
    """R groups of ``width`` weights each, sorted.

    Attributes:
        values: float32 ``[R, width]``, each row ascending; absolute values when the table is folded.
        prefix: float64 ``[R, width + 1]``, sums of the first j values.
        squares: float64 ``[R]``, sum of squares.
        table: the sign combinations that a solution may use.
    """

    values: Float32
    prefix: Float64
    squares: Float64
    table: SignTable

    @property
    def rows(self) -> int:
        """R."""
        return int(self.values.shape[0])

    @property
    def width(self) -> int:
        """Weights in a group."""
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Assignment:
    """What the nearest-level rule gives each sign combination, in the order of the table.

    Attributes:
        levels: float64 ``[R, L]``.
        counts: float64 ``[R, L]``, weights assigned.
        sums: float64 ``[R, L]``, their sum (of absolute values when folded).
    """

    levels: Float64
    counts: Float64
    sums: Float64


def sort_groups(weights: Float32, table: SignTable) -> Groups:
    """Prepares groups ``[R, width]`` of finite float32 weights for a table."""
    values = np.sort(weights if table.offset else np.abs(weights), axis=1)
    prefix = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, dtype=np.float64, out=prefix[:, 1:])
    squares = np.einsum("rk,rk->r", weights, weights, dtype=np.float64)
    return Groups(values, prefix, squares, table)


def with_table(groups: Groups, table: SignTable) -> Groups:
    """The same weights under another number of planes."""
    assert groups.table.offset == table.offset
    return Groups(groups.values, groups.prefix, groups.squares, table)


def select(groups: Groups, rows: NDArray[np.int64]) -> Groups:
    """Some of the groups."""
    return Groups(groups.values[rows], groups.prefix[rows], groups.squares[rows], groups.table)


def assign(groups: Groups, coefficients: Float64) -> Assignment:
    """Gives each weight to its nearest level; coefficients ``[R, q]`` or, with an offset, ``[R, q + 1]``."""
    with np.errstate(invalid="ignore"):  # infinite coefficients are found by error()
        levels = groups.table.levels(coefficients)
    reach = levels if groups.table.offset else np.abs(levels)
    order = np.argsort(reach, axis=1, kind="stable")
    order += _row_starts(order.shape)
    ascending = reach.ravel()[order]
    edges = np.empty((groups.rows, levels.shape[1] + 1), np.int64)
    edges[:, 0], edges[:, -1] = 0, groups.width
    with np.errstate(invalid="ignore"):
        thresholds = (ascending[:, 1:] + ascending[:, :-1]) / 2
    edges[:, 1:-1] = _count_below(groups.values, thresholds)
    below = groups.prefix.ravel()[edges + _row_starts(groups.prefix.shape)]
    counts, sums = np.empty(levels.size), np.empty(levels.size)
    counts[order] = edges[:, 1:] - edges[:, :-1]
    sums[order] = below[:, 1:] - below[:, :-1]
    return Assignment(levels, counts.reshape(levels.shape), sums.reshape(levels.shape))


def error(groups: Groups, assignment: Assignment) -> Float64:
    """Sum of squared errors of each group, ``[R]``; infinite where a level is not finite."""
    reach = assignment.levels if groups.table.offset else np.abs(assignment.levels)
    with np.errstate(invalid="ignore", over="ignore"):
        terms = reach * (assignment.counts * reach - 2 * assignment.sums)
        total = groups.squares + terms.sum(axis=1)
    finite = np.isfinite(assignment.levels).all(axis=1) & np.isfinite(total)
    return np.where(finite, np.maximum(total, 0.0), np.inf)


def refit(groups: Groups, assignment: Assignment) -> Float64:
    """Coefficients that minimise the squared error under an assignment: least squares, one system a group."""
    signs = groups.table.signs
    planes = signs.shape[1]
    outer = (signs[:, :, None] * signs[:, None, :]).reshape(len(signs), planes * planes)
    matrix: Float64 = np.einsum("rl,lp->pr", assignment.counts, outer).reshape(planes, planes, groups.rows)
    sums = assignment.sums if groups.table.offset else np.copysign(assignment.sums, assignment.levels)
    target: Float64 = np.einsum("rl,lp->pr", sums, signs)
    matrix[np.arange(planes), np.arange(planes)] += RIDGE * groups.width
    return np.ascontiguousarray(solve_positive(matrix, target).T)


def _count_below(values: Float32, thresholds: Float64) -> NDArray[np.int64]:
    """How many values of each row lie at or below each threshold: a binary search over all rows at once."""
    width = values.shape[1]
    flat = values.ravel()
    first = _row_starts(values.shape) - 1
    position = np.zeros(thresholds.shape, np.int64)
    step = 1 << (width.bit_length() - 1)
    while step:
        candidate = position + step
        probe = flat[first + np.minimum(candidate, width)]
        np.copyto(position, candidate, where=(probe <= thresholds) & (candidate <= width))
        step >>= 1
    return position


def _row_starts(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Index of the first element of each row in the flattened array, ``[R, 1]``."""
    return (np.arange(shape[0], dtype=np.int64) * shape[1])[:, None]


def solve_positive(matrix: Float64, target: Float64) -> Float64:
    """Solves R small positive systems, ``[P, P, R] x [P, R]``, by Cholesky; overwrites ``matrix``."""
    planes = len(matrix)
    x: Float64 = target.copy()
    for j in range(planes):
        for k in range(j):
            matrix[j, j] -= matrix[j, k] ** 2
        np.sqrt(np.maximum(matrix[j, j], np.finfo(np.float64).tiny), out=matrix[j, j])
        for i in range(j + 1, planes):
            for k in range(j):
                matrix[i, j] -= matrix[i, k] * matrix[j, k]
            matrix[i, j] /= matrix[j, j]
    for i in range(planes):
        for k in range(i):
            x[i] -= matrix[i, k] * x[k]
        x[i] /= matrix[i, i]
    for i in reversed(range(planes)):
        for k in range(i + 1, planes):
            x[i] -= matrix[k, i] * x[k]
        x[i] /= matrix[i, i]
    return x
