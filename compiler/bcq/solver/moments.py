# SPDX-License-Identifier: Apache-2.0
"""Second moments of a layer's inputs, made fit for solving: checked, scaled, damped and factored.

With e the error of one row of weights, H the second moments and U upper triangular with H = U^T U, the mean
squared error of that row's output is e^T H e = |U e|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bcq.errors import InputError
from bcq.solver.groups import Float32
from bcq.solver.levels import Float64

DAMPING = 0.03  # of the mean diagonal; unused inputs keep a say, and rare ones are not over-fitted
BLOCK = 256  # rows of H at a time, so that it is never held twice in a wider type


@dataclass(frozen=True)
class Moments:
    """What the steps of the solver need of H, scaled by a power of two.

    Attributes:
        matrix: float32 ``[K, K]``, symmetric, positive definite, mean diagonal about 1: H and the damping.
        diagonal: float32 ``[K]``, of H without damping.
        order: int64 ``[K]``, inputs from the least to the most used.
        factor: float32 ``[K, K]``, upper triangular U with U^T U = ``matrix[order][:, order]``.
    """

    matrix: Float32
    diagonal: Float32
    order: NDArray[np.int64]
    factor: Float32


def checked(second_moments: Float32, inputs: int, name: str) -> Float32:
    """A copy of H, symmetric and scaled to a mean diagonal between 1/2 and 1; zeros stay zeros.

    Raises:
        InputError: E106 when a number is not finite or the diagonal has a negative one.
        ValueError: when the shape is not ``[K, K]``.
    """
    if second_moments.shape != (inputs, inputs):
        raise ValueError(f"second_moments: got {list(second_moments.shape)}, expected [{inputs}, {inputs}]")
    _check_finite(second_moments, f"{name}: second moments of its inputs")
    squares = second_moments.diagonal()
    if (squares < 0).any():
        worst = int(squares.argmin())
        raise InputError(
            "E106",
            f"{name}: second moments of its inputs: element [{worst}, {worst}] is {squares[worst]}, expected "
            "none below zero on the diagonal.",
            "They are means of products: compute them again.",
        )
    exponent = math.frexp(float(squares.mean(dtype=np.float64)))[1]
    matrix: Float32 = np.ldexp(second_moments, -exponent, dtype=np.float32)
    for begin in range(0, inputs, BLOCK):
        stripe = slice(begin, begin + BLOCK)
        matrix[stripe, begin:] = (matrix[stripe, begin:] + matrix[begin:, stripe].T) / 2
        matrix[begin:, stripe] = matrix[stripe, begin:].T
    return matrix


def _check_finite(moments: Float32, what: str) -> None:
    """Refuses numbers that are not finite, a few rows at a time.

    Raises:
        InputError: E106 with the place of the first.
    """
    for begin in range(0, len(moments), BLOCK):
        part = np.asarray(moments[begin : begin + BLOCK])
        wrong = ~np.isfinite(part)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InputError(
                "E106",
                f"{what}: element [{begin + row}, {column}] is {part[row, column]}, expected finite numbers.",
                "The model overflows on the calibration text: check that it runs in float32.",
            )


def prepare(matrix: Float32) -> Moments:
    """Damps and factors what :func:`checked` returns, in place, with as much more damping as that takes."""
    diagonal = matrix.diagonal().copy()
    order = np.argsort(diagonal, kind="stable")
    damping = DAMPING * (float(diagonal.mean(dtype=np.float64)) or 1.0)
    while True:
        np.fill_diagonal(matrix, diagonal + np.float32(damping))
        try:
            lower = np.linalg.cholesky(matrix[np.ix_(order, order)])
        except np.linalg.LinAlgError:  # not positive: rounded away, or no second moments at all
            damping *= 10
            continue
        return Moments(matrix, diagonal, order, lower.T)


def row_errors(difference: Float32, matrix: Float32, diagonal: Float32 | None = None) -> Float64:
    """e^T H e of each row of errors ``[N, K]``: float64 ``[N]``; H is ``matrix`` with this ``diagonal``."""
    wide = difference.astype(np.float64)
    total: Float64 = np.zeros(len(wide))
    if diagonal is not None:
        total += np.square(wide) @ (diagonal.astype(np.float64) - matrix.diagonal())
    for begin in range(0, len(matrix), BLOCK):
        part = slice(begin, begin + BLOCK)
        total += np.einsum("nk,nk->n", wide @ matrix[:, part].astype(np.float64), wide[:, part])
    return np.maximum(total, 0.0)
