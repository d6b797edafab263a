# SPDX-License-Identifier: Apache-2.0
"""Solves one matrix for the inputs that it will see: the output's error counts, not the weight's.

Candidates of each row: the data-free solution, that one after coordinate descent, and solutions that begin
with error feedback. The one with the least calibrated error wins, row by row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import BcqWeight, Float32, pack_bits, unpack_bits
from bcq.solver.blas import one_blas_thread
from bcq.solver.codebook import codebook
from bcq.solver.descent import Rows, start, sweep
from bcq.solver.feedback import feed_back
from bcq.solver.moments import Moments, checked, prepare, row_errors
from bcq.solver.solve import rows_of, solve

BLOCK_WEIGHTS = 1 << 21  # weights of a block of rows: temporaries stay below about 40 bytes a weight
SWEEPS = 3  # of coordinate descent after each error feedback
FEEDBACKS = 2


def solve_calibrated(
    weights: Float32,
    second_moments: Float32,
    bits: int,
    group_size: int,
    offset: bool = False,
    seed: int = 0,
    name: str = "weight",
) -> BcqWeight:
    """Finds planes and alphas for one matrix under the second moments of its inputs.

    Args:
        weights: float32 ``[N, K]``, finite.
        second_moments: float32 ``[K, K]``, mean of x x^T over the rows x of a calibration text.
        bits: q, 1 to 8.
        group_size: g, a multiple of 32, or K.
        offset: whether each group has an offset.
        seed: seed of random choices; the present method makes none.
        name: of the tensor, for errors.

    Returns:
        The best of all candidates; no row's calibrated error is above that of the data-free solution.

    Raises:
        InputError: E106 when a weight or a second moment is not finite, or float16 cannot hold the alphas.
        ValueError: when shapes or options do not fit.
    """
    with one_blas_thread():
        matrix = checked(second_moments, weights.shape[1], name)
        plain = solve(weights, bits, group_size, offset=offset, seed=seed, name=name)
        if not matrix.any():
            return plain
        moments = prepare(matrix)
        words, alpha = plain.words.copy(), plain.alpha.copy()
        offsets = None if plain.offset is None else plain.offset.copy()

        for block in _blocks(*weights.shape):
            dense = np.ascontiguousarray(weights[block], dtype=np.float32)
            found = _improved(dense, rows_of(plain, block), moments)
            words[:, block], alpha[:, block] = found.words, found.alpha
            if offsets is not None:
                offsets[block] = found.offset
    return BcqWeight(words, alpha, offsets, plain.inputs, plain.group_size)


def calibrated_error(weights: Float32, solved: BcqWeight, second_moments: Float32) -> float:
    """tr(E H E^T) / tr(W H W^T), E = W minus its codes: the relative mean squared error of the output.

    Args:
        weights: float32 ``[N, K]``.
        solved: codes of the same shape.
        second_moments: float32 ``[K, K]``.

    Returns:
        The ratio; 0 when both are zero.

    Raises:
        InputError: E106 when a second moment is not finite.
        ValueError: when shapes do not fit.
    """
    matrix = checked(second_moments, weights.shape[1], "weight")
    wrong = total = 0.0
    with one_blas_thread():
        for block in _blocks(*weights.shape):
            dense = np.asarray(weights[block], dtype=np.float32)
            wrong += float(row_errors(rows_of(solved, block).dequantize() - dense, matrix).sum())
            total += float(row_errors(dense, matrix).sum())
    return wrong / total if total else wrong


def _blocks(rows: int, inputs: int) -> list[slice]:
    step = max(32, BLOCK_WEIGHTS // max(inputs, 1))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def _improved(dense: Float32, plain: BcqWeight, moments: Moments) -> BcqWeight:
    """The best candidate of each row of a block."""
    target = np.ascontiguousarray(dense.T)
    best = plain
    lowest = row_errors(plain.dequantize() - dense, moments.matrix, moments.diagonal)
    rows = _state(plain, target, moments)
    sweep(rows, moments.matrix)
    for _ in range(FEEDBACKS):
        rows = _fed_back(rows, moments)
        for _ in range(SWEEPS):
            sweep(rows, moments.matrix)
        candidate = _stored(rows, plain.offset is not None)
        errors = row_errors(candidate.dequantize() - dense, moments.matrix, moments.diagonal)
        best = _merged(best, candidate, errors < lowest)
        lowest = np.minimum(lowest, errors)
    return best


def _state(weight: BcqWeight, target: Float32, moments: Moments) -> Rows:
    codes = np.zeros(target.shape, np.uint8)
    for plane in range(weight.bits):
        codes |= unpack_bits(weight.words[plane], weight.inputs).T << np.uint8(weight.bits - 1 - plane)
    coefficients = weight.alpha.astype(np.float64).transpose(2, 0, 1)
    if weight.offset is not None:
        coefficients = np.concatenate([coefficients, weight.offset.T[:, None].astype(np.float64)], axis=1)
    return start(target, codes, coefficients, moments.matrix, weight.bits, weight.group_size)


def _fed_back(rows: Rows, moments: Moments) -> Rows:
    """New codes by error feedback with the levels that the rows have."""
    books = [codebook(coefficients, rows.bits) for coefficients in rows.coefficients]
    dense = feed_back(rows.target, moments.factor, moments.order, books, rows.group_size)
    codes = np.empty(dense.shape, np.uint8)
    for group, begin in enumerate(range(0, len(dense), rows.group_size)):
        part = slice(begin, begin + rows.group_size)
        codes[part] = books[group].codes_of(dense[part])
    return start(rows.target, codes, rows.coefficients, moments.matrix, rows.bits, rows.group_size)


def _stored(rows: Rows, offset: bool) -> BcqWeight:
    """As a file holds it: alphas not negative and falling, planes in that order."""
    bits, inputs = rows.bits, len(rows.target)
    alphas = rows.coefficients[:, :bits]
    order = np.argsort(-np.abs(alphas), axis=1, kind="stable")
    signs = np.stack([(rows.codes >> np.uint8(bits - 1 - plane)) & np.uint8(1) for plane in range(bits)])
    group_of = np.arange(inputs) // rows.group_size
    signs ^= (alphas < 0).astype(np.uint8).transpose(1, 0, 2)[:, group_of]
    signs = np.take_along_axis(signs, order.transpose(1, 0, 2)[:, group_of], axis=0)
    alpha = np.take_along_axis(np.abs(alphas), order, axis=1).transpose(1, 2, 0).astype(np.float16)
    offsets = np.ascontiguousarray(rows.coefficients[:, bits].T).astype(np.float16) if offset else None
    words = pack_bits(np.ascontiguousarray(signs.transpose(0, 2, 1)))
    return BcqWeight(words, np.ascontiguousarray(alpha), offsets, inputs, rows.group_size)


def _merged(best: BcqWeight, candidate: BcqWeight, better: NDArray[np.bool_]) -> BcqWeight:
    """The candidate's rows where it is better."""
    words = np.where(better[:, None], candidate.words, best.words)
    alpha = np.where(better[:, None], candidate.alpha, best.alpha)
    offset = best.offset
    if offset is not None and candidate.offset is not None:
        offset = np.where(better[:, None], candidate.offset, offset)
    return BcqWeight(words, alpha, offset, best.inputs, best.group_size)
