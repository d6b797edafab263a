# SPDX-License-Identifier: Apache-2.0
"""The sorted levels of one group of many rows, side by side, so that a column finds its levels at once.

Calibrated steps walk over inputs and treat all rows of a block together. Everything here therefore has the
rows last: a column of N weights is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bcq.solver.groups import Float32
from bcq.solver.levels import Float64, all_signs

COMPARED = 16  # levels up to which comparing with each threshold is faster than a binary search
Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Tried:
    """Levels that an input may take next, for each choice of a row so far.

    Attributes:
        costs: float32 ``[A, C, N]``, what each of A levels adds to each of C choices.
        values: float32 ``[A, C, N]``, the levels.
    """

    costs: Float32
    values: Float32

    def levels(self, kept: NDArray[np.intp]) -> Float32:
        """Levels ``[1, beam, N]`` by their flat indexes ``[beam, N]`` among the costs."""
        return self.values.ravel().take(kept)[None]


@dataclass(frozen=True)
class Codebook:
    """Levels of N rows.

    Attributes:
        values: float32 ``[2^q, N]``, ascending along the first axis.
        codes: uint8 ``[2^q, N]``, the signs of each level: plane 1 is the highest of q bits, 1 for +1.
        thresholds: float32 ``[2^q - 1, N]``, halfway between neighbours.
    """

    values: Float32
    codes: Codes
    thresholds: Float32

    def nearest(self, target: Float32) -> Float32:
        """The level nearest to each of ``[N]`` numbers; the lower one when two are."""
        if len(self.values) > COMPARED:
            return _pick(self.values, _below(self.thresholds, target))
        value: Float32 = self.values[0].copy()
        for threshold, level in zip(self.thresholds, self.values[1:], strict=True):
            np.copyto(value, level, where=target > threshold)
        return value

    def around(self, target: Float32) -> Float32:
        """For numbers ``[C, N]``, the two levels between which each lies, ``[2, C, N]``.

        A number outside all levels has the two outermost on its side.
        """
        if len(self.values) > COMPARED:
            return np.stack([_between(self.values, numbers) for numbers in target], axis=1)
        result = np.empty((2, *target.shape), np.float32)
        result[0], result[1] = self.values[0], self.values[1]
        for lower, upper in zip(self.values[1:], self.values[2:], strict=False):
            above = target > lower
            np.copyto(result[0], lower, where=above)
            np.copyto(result[1], upper, where=above)
        return result

    def tried(self, weight: Float32, pull: Float32, diagonal: np.float32) -> Tried:
        """The levels on both sides of where errors so far pull weights.

        Args:
            weight: float32 ``[N]``.
            pull: float32 ``[1, C, N]``, what the errors of other inputs add to this one's term.
            diagonal: of U.
        """
        levels = self.around(weight - pull[0] / diagonal)
        return Tried(np.square((levels - weight) * diagonal + pull[0]), levels)

    def codes_of(self, dense: Float32) -> Codes:
        """The codes of ``[width, N]`` numbers that are levels."""
        rank = np.zeros(dense.shape, np.uint8)
        if len(self.values) > COMPARED:
            for row, levels in zip(rank, dense, strict=True):
                row[:] = _below(self.thresholds, levels)
        else:
            for threshold in self.thresholds:
                rank += dense > threshold
        codes: Codes = np.take_along_axis(self.codes, rank, axis=0)
        return codes


def codebook(coefficients: Float64, bits: int) -> Codebook:
    """The codebook of coefficients ``[q, N]`` or, with an offset, ``[q + 1, N]``."""
    levels = levels_of(coefficients, bits)
    order = np.argsort(levels, axis=0, kind="stable")
    ascending = np.take_along_axis(levels, order, axis=0)
    thresholds = (ascending[1:] + ascending[:-1]) / 2
    return Codebook(ascending.astype(np.float32), order.astype(np.uint8), thresholds.astype(np.float32))


def levels_of(coefficients: Float64, bits: int) -> Float64:
    """What each code stands for under coefficients ``[q (+ 1), N]``: float64 ``[2^q, N]``."""
    levels: Float64 = np.einsum("pn,lp->ln", coefficients[:bits], all_signs(bits))
    if len(coefficients) > bits:
        levels += coefficients[bits]
    return levels


def _below(edges: Float32, target: Float32) -> Codes:
    """How many of 2^q - 1 ascending edges ``[2^q - 1, N]`` lie below each of ``[N]`` numbers."""
    rank = np.zeros(len(target), np.uint8)
    step = (len(edges) + 1) // 2
    while step:
        rank += np.uint8(step) * (target > _pick(edges, rank + np.uint8(step - 1)))
        step //= 2
    return rank


def _between(values: Float32, target: Float32) -> Float32:
    """The levels around each of ``[N]`` numbers, ``[2, N]``."""
    lower = np.minimum(_below(values[1:], target), len(values) - 2).astype(np.uint8)
    return np.stack([_pick(values, lower), _pick(values, lower + np.uint8(1))])


def _pick(table: Float32, rank: Codes) -> Float32:
    """``table[rank[n], n]`` for every row n."""
    rows = table.shape[1]
    result: Float32 = table.ravel().take(rank.astype(np.int32) * rows + np.arange(rows, dtype=np.int32))
    return result
