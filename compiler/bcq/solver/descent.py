# SPDX-License-Identifier: Apache-2.0
"""Coordinate descent under second moments: codes one input at a time, coefficients one group at a time.

With e the error of a row, H e is half the gradient of e^T H e. Each step below finds the exact minimum over
one weight's levels, or over the coefficients of one group by least squares, everything else fixed. Products
with H are put off: inside a block first, then a span, then the group, and over the row after each group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bcq.solver.codebook import Codebook, Codes, codebook
from bcq.solver.groups import RIDGE, Float32, solve_positive
from bcq.solver.levels import Float64

BLOCK = 16  # inputs between two matrix products inside a span
SPAN = 128  # inputs between two matrix products over a group
LARGEST = float(np.finfo(np.float16).max)


@dataclass
class Rows:
    """A block of rows on their way, rows last.

    Attributes:
        target: float32 ``[K, N]``, the weights.
        dense: float32 ``[K, N]``, what the codes stand for.
        gradient: float32 ``[K, N]``, H times the errors.
        codes: uint8 ``[K, N]``.
        coefficients: float64 ``[G, q (+ 1), N]``, as float16 holds them.
        bits: q.
        group_size: g.
    """

    target: Float32
    dense: Float32
    gradient: Float32
    codes: Codes
    coefficients: Float64
    bits: int
    group_size: int


def start(
    target: Float32, codes: Codes, coefficients: Float64, matrix: Float32, bits: int, group_size: int
) -> Rows:
    """The state that belongs to codes and coefficients."""
    dense = np.empty_like(target)
    for group, begin in enumerate(range(0, len(target), group_size)):
        part = slice(begin, begin + group_size)
        dense[part] = _dense(codes[part], coefficients[group], bits)
    return Rows(target, dense, matrix @ (dense - target), codes, coefficients.copy(), bits, group_size)


def sweep(rows: Rows, matrix: Float32) -> None:
    """Once over all groups: the coefficients of a group, then its codes."""
    for group, begin in enumerate(range(0, len(rows.target), rows.group_size)):
        part = slice(begin, min(begin + rows.group_size, len(rows.target)))
        inside = np.ascontiguousarray(matrix[part, part])
        gradient, before = rows.gradient[part].copy(), rows.dense[part].copy()
        _refit(rows, group, part, inside, gradient)
        _choose(rows, group, part, inside, gradient)
        rows.gradient += matrix[:, part] @ (rows.dense[part] - before)


def _refit(rows: Rows, group: int, part: slice, inside: Float32, gradient: Float32) -> None:
    """Least squares for one group's coefficients, rounded to float16; ``gradient`` follows."""
    planes = len(rows.coefficients[group])
    basis = [_plane(rows.codes[part], plane, rows.bits) for plane in range(planes)]
    moved = np.stack([inside @ plane for plane in basis])
    normal = np.empty((planes, planes, basis[0].shape[1]))
    for i, plane in enumerate(basis):
        for j in range(i + 1):
            normal[i, j] = normal[j, i] = np.einsum("kn,kn->n", plane, moved[j])
    wanted = np.stack([-np.einsum("kn,kn->n", plane, gradient) for plane in basis]).astype(np.float64)
    normal[np.arange(planes), np.arange(planes)] += RIDGE * float(np.trace(inside)) + 1e-30
    following = rows.coefficients[group] + solve_positive(normal, wanted)
    stored = np.clip(following, -LARGEST, LARGEST).astype(np.float16).astype(np.float64)
    change = (stored - rows.coefficients[group]).astype(np.float32)
    rows.coefficients[group] = stored
    rows.dense[part] = _dense(rows.codes[part], stored, rows.bits)
    for i in range(planes):
        gradient += moved[i] * change[i]


def _choose(rows: Rows, group: int, part: slice, inside: Float32, gradient: Float32) -> None:
    """Every weight of one group takes its best level in turn; ``gradient`` follows."""
    book, dense = codebook(rows.coefficients[group], rows.bits), rows.dense[part]
    for begin in range(0, len(dense), SPAN):
        span = slice(begin, min(begin + SPAN, len(dense)))
        before = dense[span].copy()
        _choose_span(dense[span], gradient[span].copy(), np.ascontiguousarray(inside[span, span]), book)
        gradient += inside[:, span] @ (dense[span] - before)
    rows.codes[part] = book.codes_of(dense)


def _choose_span(dense: Float32, gradient: Float32, inside: Float32, book: Codebook) -> None:
    """The same for a few inputs; changes ``dense`` and its own ``gradient``."""
    step = 1 / inside.diagonal()
    for begin in range(0, len(dense), BLOCK):
        end = min(begin + BLOCK, len(dense))
        before = dense[begin:end].copy()
        for j in range(begin, end):
            value = book.nearest(dense[j] - gradient[j] * step[j])
            change = value - dense[j]
            dense[j] = value
            gradient[j + 1 : end] += inside[j + 1 : end, j, None] * change
        gradient[end:] += inside[end:, begin:end] @ (dense[begin:end] - before)


def _plane(codes: Codes, plane: int, bits: int) -> Float32:
    """Plane 1 to q as -1 and +1, or ones for the offset behind them, float32 ``[width, N]``."""
    if plane == bits:
        return np.ones(codes.shape, np.float32)
    signs: Float32 = ((codes >> np.uint8(bits - 1 - plane)) & np.uint8(1)).astype(np.float32) * 2 - 1
    return signs


def _dense(codes: Codes, coefficients: Float64, bits: int) -> Float32:
    total = np.zeros(codes.shape, np.float32)
    for plane, coefficient in enumerate(coefficients.astype(np.float32)):
        total += coefficient * _plane(codes, plane, bits)
    return total
