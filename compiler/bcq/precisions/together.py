# SPDX-License-Identifier: Apache-2.0
"""Codes that serve several precisions under second moments: descent and error feedback for all at once.

As :mod:`bcq.solver.descent` and :mod:`bcq.solver.feedback`, which do the steps. Each precision has errors and
a gradient of its own, and what is made small is sum_b s_b e_b^T H e_b with a share s_b of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bcq.precisions.book import NestedBook, nested_book
from bcq.solver.codebook import Codes
from bcq.solver.descent import choose, dense_of, refit
from bcq.solver.feedback import feed_back_all
from bcq.solver.groups import Float32
from bcq.solver.levels import Float64
from bcq.solver.moments import Moments


@dataclass(frozen=True)
class Form:
    """What all rows of a matrix have in common.

    Attributes:
        sizes: planes and group size of each precision, ascending.
        shares: of the squared error of each.
        offset: whether groups have offsets.
    """

    sizes: Sequence[tuple[int, int]]
    shares: Sequence[float]
    offset: bool

    @property
    def bits(self) -> tuple[int, ...]:
        """Planes of each precision."""
        return tuple(bits for bits, _ in self.sizes)

    def segment(self, inputs: int) -> int:
        """Inputs that share their coefficients at every precision."""
        return math.gcd(*(size for _, size in self.sizes if size < inputs)) or inputs

    def prefix(self, codes: Codes, bits: int) -> Codes:
        """The digits of codes that a precision reads."""
        shifted: Codes = codes >> np.uint8(self.bits[-1] - bits)
        return shifted


@dataclass
class Together:
    """A block of rows on their way, rows last.

    Attributes:
        form: precisions.
        target: float32 ``[K, N]``, the weights.
        dense: float32 ``[K, P, N]``, what the codes stand for at each precision.
        gradient: float32 ``[K, P, N]``, H times the errors.
        codes: uint8 ``[K, N]``.
        coefficients: by precision, float64 ``[G, b (+ 1), N]``, as float16 holds them.
    """

    form: Form
    target: Float32
    dense: Float32
    gradient: Float32
    codes: Codes
    coefficients: list[Float64]


def start(
    form: Form, target: Float32, codes: Codes, coefficients: Sequence[Float64], matrix: Float32
) -> Together:
    """The state that belongs to codes and coefficients."""
    inputs, rows = target.shape
    dense = np.empty((inputs, len(form.sizes), rows), np.float32)
    for place, (bits, size) in enumerate(form.sizes):
        read = form.prefix(codes, bits)
        for group, begin in enumerate(range(0, inputs, size)):
            part = slice(begin, begin + size)
            dense[part, place] = dense_of(read[part], coefficients[place][group], bits)
    errors = (dense - target[:, None]).reshape(inputs, -1)
    gradient = (matrix @ errors).reshape(dense.shape)
    return Together(form, target, dense, gradient, codes, [own.copy() for own in coefficients])


def sweep(rows: Together, matrix: Float32) -> None:
    """Once over all inputs: coefficients of each group as it begins, then codes."""
    inputs = len(rows.target)
    segment = rows.form.segment(inputs)
    dense, gradient = rows.dense.reshape(inputs, -1), rows.gradient.reshape(inputs, -1)
    for begin in range(0, inputs, segment):
        part = slice(begin, min(begin + segment, inputs))
        for place, (_, size) in enumerate(rows.form.sizes):
            if begin % size == 0:
                _refit(rows, place, begin // size, matrix)
        before, book = dense[part].copy(), _book(rows, begin)
        inside = np.ascontiguousarray(matrix[part, part])
        choose(dense[part], gradient[part].copy(), inside, book)
        rows.codes[part] = book.codes_of(dense[part])
        gradient += matrix[:, part] @ (dense[part] - before)


def fed_back(rows: Together, moments: Moments, beam: int) -> Together:
    """New codes by error feedback with the levels that the rows have."""
    inputs = len(rows.target)
    segment = rows.form.segment(inputs)
    books = [_book(rows, begin) for begin in range(0, inputs, segment)]
    dense = feed_back_all(
        rows.target, moments.factor, moments.order, books, segment, len(rows.form.sizes), beam
    )
    codes = np.empty_like(rows.codes)
    for book, begin in zip(books, range(0, inputs, segment), strict=True):
        part = slice(begin, begin + segment)
        codes[part] = book.codes_of(dense[part].reshape(-1, dense[0].size))
    return start(rows.form, rows.target, codes, rows.coefficients, moments.matrix)


def _book(rows: Together, begin: int) -> NestedBook:
    """The levels of the segment that begins there."""
    sizes = rows.form.sizes
    own = [
        coefficients[begin // size] for coefficients, (_, size) in zip(rows.coefficients, sizes, strict=True)
    ]
    return nested_book(own, rows.form.bits, rows.form.shares)


def _refit(rows: Together, place: int, group: int, matrix: Float32) -> None:
    """Least squares for the coefficients of one group of one precision."""
    bits, size = rows.form.sizes[place]
    part = slice(group * size, min((group + 1) * size, len(rows.target)))
    codes = rows.form.prefix(rows.codes[part], bits)
    inside, gradient = np.ascontiguousarray(matrix[part, part]), rows.gradient[part, place].copy()
    stored = refit(codes, rows.coefficients[place][group], bits, inside, gradient)
    rows.coefficients[place][group] = stored
    dense = dense_of(codes, stored, bits)
    rows.gradient[:, place] += matrix[:, part] @ (dense - rows.dense[part, place])
    rows.dense[part, place] = dense
