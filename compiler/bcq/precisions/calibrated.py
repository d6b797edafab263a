# SPDX-License-Identifier: Apache-2.0
"""Planes that serve several precisions, solved for the inputs that their matrix will see.

Each precision answers to the error of its own output, e^T H e; codes make the sum of all small, each with a
share. Candidates of each row: the data-free solution, that one after a descent, and what error feedback makes
of it, with shares that favour few planes first. The one with the least sum wins, row by row.
Decision: ``docs/decisions/0017-nested-precision.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bcq.bcq import BcqWeight, Float32, pack_bits
from bcq.precisions.solve import LEAST_ERROR, NestedWeight, Precision, codes_of, joined, solve_apart
from bcq.precisions.together import Form, Together, fed_back, start, sweep
from bcq.solver.blas import one_blas_thread
from bcq.solver.codebook import Codes
from bcq.solver.levels import Float64
from bcq.solver.moments import Moments, checked, prepare, row_errors

BLOCK_WEIGHTS = 1 << 20  # weights of a block of rows: temporaries stay below about 100 bytes a weight
SWEEPS = 3  # of descent after each error feedback
STEPS = ((0.0, 1), (0.5, 1), (0.75, 8))  # error feedbacks: power of the shares, and choices that a row keeps
POWER = 1.0  # of the shares by which candidates are compared


def solve_nested_calibrated(
    weights: Float32,
    second_moments: Float32,
    group_sizes: Mapping[int, int],
    offset: bool = False,
    seed: int = 0,
    name: str = "weight",
) -> NestedWeight:
    """Solves one matrix for several precisions under the second moments of its inputs.

    The share of a precision is a power of one over the error that it has when it is solved alone.

    Args:
        weights: float32 ``[N, K]``, finite.
        second_moments: float32 ``[K, K]``, mean of x x^T over the rows x of a calibration text.
        group_sizes: g by number of planes; 0 is one group a row.
        offset: whether each group has an offset, at every precision.
        seed: handed to the solver of the starts.
        name: of the matrix, for errors.

    Returns:
        The best of all candidates; no row's summed error is above that of the data-free solution.

    Raises:
        InputError: E106 when a weight or a second moment is not finite, or float16 cannot hold the alphas.
        ValueError: when shapes or options do not fit.
    """
    with one_blas_thread():
        matrix = checked(second_moments, weights.shape[1], name)
        apart = solve_apart(weights, group_sizes, offset, seed, name)
        plain = joined(weights, apart)
        if not matrix.any():
            return plain
        alone = {bits: _error(weights, solved, matrix) for bits, solved in apart.items()}
        return _improved(weights, plain, alone, prepare(matrix))


def _error(weights: Float32, solved: BcqWeight, matrix: Float32) -> float:
    """tr(E H E^T) / tr(W H W^T)."""
    total = float(row_errors(weights, matrix).sum())
    wrong = float(row_errors(solved.dequantize() - weights, matrix).sum())
    return max(wrong / total, LEAST_ERROR) if total else 1.0


@dataclass
class _Best:
    """The best candidate of each row of a block so far; rows last."""

    codes: Codes
    coefficients: list[Float64]
    errors: Float64

    def add(self, rows: Together, errors: Float64) -> None:
        """Takes the rows that are better."""
        better = errors < self.errors
        self.codes = np.where(better, rows.codes, self.codes)
        pairs = zip(rows.coefficients, self.coefficients, strict=True)
        self.coefficients = [np.where(better, new, old) for new, old in pairs]
        self.errors = np.minimum(errors, self.errors)


def _improved(
    weights: Float32, plain: NestedWeight, alone: Mapping[int, float], moments: Moments
) -> NestedWeight:
    """The best candidate of each row."""
    form = _form(plain, alone, POWER)
    codes = codes_of(plain.words, plain.inputs)
    coefficients = [_coefficients(plain.precisions[bits]) for bits in form.bits]
    step = max(32, BLOCK_WEIGHTS // max(plain.inputs, 1))
    for begin in range(0, len(weights), step):
        block = slice(begin, begin + step)
        target = np.ascontiguousarray(weights[block].T, dtype=np.float32)
        own = [values[..., block] for values in coefficients]
        rows = start(form, target, np.ascontiguousarray(codes[block].T), own, moments.matrix)
        best = _search(rows, [_form(plain, alone, power) for power, _ in STEPS], form, moments)
        codes[block] = best.codes.T
        for values, found in zip(coefficients, best.coefficients, strict=True):
            values[..., block] = found
    return _weight(form, codes, coefficients)


def _search(rows: Together, forms: list[Form], judged: Form, moments: Moments) -> _Best:
    """All candidates of a block of rows."""
    best = _Best(rows.codes.copy(), [own.copy() for own in rows.coefficients], _errors(rows, judged, moments))
    rows.form = forms[0]
    sweep(rows, moments.matrix)
    best.add(rows, _errors(rows, judged, moments))
    for form, (_, beam) in zip(forms, STEPS, strict=True):
        rows.form = form
        rows = fed_back(rows, moments, beam)
        for _ in range(SWEEPS):
            sweep(rows, moments.matrix)
        best.add(rows, _errors(rows, judged, moments))
    return best


def _errors(rows: Together, form: Form, moments: Moments) -> Float64:
    """The summed error of each row ``[N]``, with the shares of a form, without damping."""
    total = np.zeros(rows.target.shape[1])
    for place, share in enumerate(form.shares):
        missed = (rows.dense[:, place] - rows.target).T
        total += share * row_errors(missed, moments.matrix, moments.diagonal)
    return total


def _form(weight: NestedWeight, alone: Mapping[int, float], power: float) -> Form:
    sizes = [(bits, weight.precisions[bits].group_size) for bits in sorted(weight.precisions)]
    offset = any(own.offset is not None for own in weight.precisions.values())
    return Form(sizes, [alone[bits] ** -power for bits, _ in sizes], offset)


def _coefficients(precision: Precision) -> Float64:
    """float64 ``[G, b (+ 1), N]``."""
    found: Float64 = precision.alpha.astype(np.float64).transpose(2, 0, 1)
    if precision.offset is None:
        return found
    return np.concatenate([found, precision.offset.T[:, None].astype(np.float64)], axis=1)


def _weight(form: Form, codes: Codes, coefficients: list[Float64]) -> NestedWeight:
    """Planes and float16 factors."""
    precisions = {}
    for (bits, size), values in zip(form.sizes, coefficients, strict=True):
        half = np.ascontiguousarray(values.transpose(1, 2, 0)).astype(np.float16)
        offset = half[bits] if form.offset else None
        precisions[bits] = Precision(half[:bits], offset, size)
    planes = [pack_bits((codes >> place) & 1) for place in reversed(range(form.bits[-1]))]
    return NestedWeight(np.stack(planes), precisions, codes.shape[1])
