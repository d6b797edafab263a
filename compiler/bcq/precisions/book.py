# SPDX-License-Identifier: Apache-2.0
"""The levels that a code stands for at each of several precisions, and the code that suits all of them best.

As :mod:`bcq.solver.codebook`, with rows last; P precisions stand before the rows, the lowest first. A code c
has the digits of all planes, plane 1 first, so a precision of b planes reads its first b digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bcq.solver.codebook import Codes, levels_of
from bcq.solver.groups import Float32
from bcq.solver.levels import Float64

_AT_ONCE = 16  # inputs whose codes are found together


@dataclass(frozen=True)
class NestedBook:
    """Levels of N rows.

    Attributes:
        values: by precision, float32 ``[2^b, N]``, in the order of the codes.
        weighed: the same times ``roots``.
        roots: by precision, the root of the share that its squared error has.
    """

    values: Sequence[Float32]
    weighed: Sequence[Float32]
    roots: Sequence[np.float32]

    @property
    def planes(self) -> int:
        """Digits of a code: the planes of the highest precision."""
        return len(self.values[-1]).bit_length() - 1

    def nearest(self, target: Float32) -> Float32:
        """The levels ``[P * N]`` of the cheapest codes where precisions ask for ``[P * N]`` numbers."""
        wanted = target.reshape(len(self.values), 1, -1)
        codes = self._cheapest(wanted)[0].astype(np.intp)
        return self._levels(codes, np.arange(len(codes))).ravel()

    def codes_of(self, dense: Float32) -> Codes:
        """The codes of ``[width, P * N]`` numbers that are levels."""
        wanted = dense.reshape(len(dense), len(self.values), -1)
        parts = range(0, len(dense), _AT_ONCE)
        return np.concatenate([self._cheapest(wanted[i : i + _AT_ONCE].swapaxes(0, 1)) for i in parts])

    def tried(self, weight: Float32, pull: Float32, diagonal: np.float32) -> TriedCodes:
        """Every code for weights ``[N]``; ``pull``: ``[P, C, N]``, what other errors add to their terms."""
        wanted = np.subtract(weight, pull / diagonal, dtype=np.float32)
        costs = self._missed(wanted, -1)
        for precision in range(len(self.values) - 1):
            missed = self._missed(wanted, precision)
            costs.reshape(len(missed), -1, *missed.shape[1:])[:] += missed[:, None]
        costs *= diagonal * diagonal
        return TriedCodes(costs, self)

    def _cheapest(self, wanted: Float32) -> Codes:
        """The codes ``[width, N]`` for numbers ``[P, width, N]``, the first of equal ones.

        Digits fall from the last one: of two codes that differ there alone, the cheaper one stays.
        """
        codes: Codes = np.arange(len(self.values[-1]), dtype=np.uint8)[:, None, None]
        costs: Float32 | None = None
        for precision in reversed(range(len(self.values))):
            missed = self._missed(wanted, precision)
            costs = missed if costs is None else costs + missed
            least = len(self.values[precision - 1]) if precision else 1
            while len(costs) > least:
                second = costs[1::2] < costs[0::2]
                codes = np.where(second, codes[1::2], codes[0::2])
                costs = np.minimum(costs[0::2], costs[1::2])
        cheapest: Codes = codes[0]
        return cheapest

    def _missed(self, wanted: Float32, precision: int) -> Float32:
        """Squared distances ``[2^b, width, N]`` of one precision times its share."""
        missed: Float32 = self.weighed[precision][:, None] - wanted[precision] * self.roots[precision]
        return np.square(missed, out=missed)

    def _levels(self, codes: NDArray[np.intp], rows: NDArray[np.intp]) -> Float32:
        """The levels ``[P, ...]`` of codes in rows."""
        count = self.values[0].shape[1]
        shifts = [self.planes - (len(values).bit_length() - 1) for values in self.values]
        pairs = zip(self.values, shifts, strict=True)
        return np.stack([values.ravel().take((codes >> shift) * count + rows) for values, shift in pairs])


@dataclass(frozen=True)
class TriedCodes:
    """All codes as what an input may take next; as :class:`bcq.solver.codebook.Tried`.

    Attributes:
        costs: float32 ``[2^q, C, N]``.
        book: has their levels.
    """

    costs: Float32
    book: NestedBook

    def levels(self, kept: NDArray[np.intp]) -> Float32:
        """Levels ``[P, beam, N]`` by their flat indexes among the costs."""
        _, choices, rows = self.costs.shape
        return self.book._levels(kept // (choices * rows), kept % rows)


def nested_book(coefficients: Sequence[Float64], bits: Sequence[int], shares: Sequence[float]) -> NestedBook:
    """The levels of coefficients ``[b (+ 1), N]`` of each precision, ascending by their ``bits``."""
    roots = [np.float32(np.sqrt(share)) for share in shares]
    levels = [levels_of(*pair).astype(np.float32) for pair in zip(coefficients, bits, strict=True)]
    weighed = [values * root for values, root in zip(levels, roots, strict=True)]
    return NestedBook(levels, weighed, roots)
