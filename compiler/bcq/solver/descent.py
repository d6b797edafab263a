# SPDX-License-Identifier: Apache-2.0
"""Coordinate descent under second moments: codes one input at a time, coefficients one group at a time.

With e the error of a row, H e is half the gradient of e^T H e. Each step below finds the exact minimum over
one weight's levels, or over the coefficients of one group by least squares, everything else fixed. Products
with H are put off: inside a block first, then a span, then the group, and over the row after each group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bcq.solver.codebook import Codes, codebook
from bcq.solver.groups import RIDGE, Float32, solve_positive
from bcq.solver.levels import Float64

BLOCK = 16  # inputs between two matrix products inside a span
SPAN = 128  # inputs between two matrix products over a group
LARGEST = float(np.finfo(np.float16).max)


class Book(Protocol):
    """The levels of one group of many rows."""

    def nearest(self, target: Float32) -> Float32:
        """The level that each of ``[N]`` numbers takes."""


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
        dense[part] = dense_of(codes[part], coefficients[group], bits)
    return Rows(target, dense, matrix @ (dense - target), codes, coefficients.copy(), bits, group_size)


def sweep(rows: Rows, matrix: Float32) -> None:
    """Once over all groups: the coefficients of a group, then its codes."""
    for group, begin in enumerate(range(0, len(rows.target), rows.group_size)):
        part = slice(begin, min(begin + rows.group_size, len(rows.target)))
        inside = np.ascontiguousarray(matrix[part, part])
        gradient, before = rows.gradient[part].copy(), rows.dense[part].copy()
        codes, dense = rows.codes[part], rows.dense[part]
        stored = refit(codes, rows.coefficients[group], rows.bits, inside, gradient)
        rows.coefficients[group] = stored
        dense[:] = dense_of(codes, stored, rows.bits)
        book = codebook(stored, rows.bits)
        choose(dense, gradient, inside, book)
        codes[:] = book.codes_of(dense)
        rows.gradient += matrix[:, part] @ (dense - before)


def refit(codes: Codes, coefficients: Float64, bits: int, inside: Float32, gradient: Float32) -> Float64:
    """Least squares for the coefficients of one group, rounded to float16.

    Args:
        codes: uint8 ``[width, N]``, plane 1 the highest of ``bits``.
        coefficients: float64 ``[q (+ 1), N]``, as they are.
        bits: q.
        inside: H of these inputs.
        gradient: of these inputs; it follows.
    """
    planes = len(coefficients)
    basis = [_plane(codes, plane, bits) for plane in range(planes)]
    moved = np.stack([inside @ plane for plane in basis])
    normal = np.empty((planes, planes, basis[0].shape[1]))
    for i, plane in enumerate(basis):
        for j in range(i + 1):
            normal[i, j] = normal[j, i] = np.einsum("kn,kn->n", plane, moved[j])
    wanted = np.stack([-np.einsum("kn,kn->n", plane, gradient) for plane in basis]).astype(np.float64)
    normal[np.arange(planes), np.arange(planes)] += RIDGE * float(np.trace(inside)) + 1e-30
    following = coefficients + solve_positive(normal, wanted)
    stored: Float64 = np.clip(following, -LARGEST, LARGEST).astype(np.float16).astype(np.float64)
    change = (stored - coefficients).astype(np.float32)
    for i in range(planes):
        gradient += moved[i] * change[i]
    return stored


def choose(dense: Float32, gradient: Float32, inside: Float32, book: Book) -> None:
    """Every weight ``[width, N]`` takes its best level in turn; ``dense`` and ``gradient`` follow."""
    for begin in range(0, len(dense), SPAN):
        span = slice(begin, min(begin + SPAN, len(dense)))
        before = dense[span].copy()
        _choose_span(dense[span], gradient[span].copy(), np.ascontiguousarray(inside[span, span]), book)
        gradient += inside[:, span] @ (dense[span] - before)


def _choose_span(dense: Float32, gradient: Float32, inside: Float32, book: Book) -> None:
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


def dense_of(codes: Codes, coefficients: Float64, bits: int) -> Float32:
    """What codes ``[width, N]`` of one group stand for."""
    total = np.zeros(codes.shape, np.float32)
    for plane, coefficient in enumerate(coefficients.astype(np.float32)):
        total += coefficient * _plane(codes, plane, bits)
    return total
