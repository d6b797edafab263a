# SPDX-License-Identifier: Apache-2.0
"""Second moments of a layer's inputs, made fit for solving: checked, scaled, damped and factored.

With e the error of one row of weights, H the second moments and U upper triangular with H = U^T U, the mean
squared error of that row's output is e^T H e = |U e|^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bcq.errors import InputError
from bcq.solver.groups import Float32
from bcq.solver.levels import Float64

DAMPING = 0.03  # of the mean diagonal; unused inputs keep a say, and rare ones are not over-fitted


@dataclass(frozen=True)
class Moments:
    """What the steps of the solver need of H.

    Attributes:
        matrix: float32 ``[K, K]``, symmetric, positive definite, mean diagonal 1 (+ damping).
        order: int64 ``[K]``, inputs from the least to the most used.
        factor: float32 ``[K, K]``, upper triangular U with U^T U = ``matrix[order][:, order]``.
    """

    matrix: Float32
    order: NDArray[np.int64]
    factor: Float32


def checked(second_moments: Float32, inputs: int, name: str) -> Float64:
    """H in float64, symmetric, with a mean diagonal of one; all zeros when the inputs are.

    Raises:
        InputError: E106 when a number is not finite or the diagonal has a negative one.
        ValueError: when the shape is not ``[K, K]``.
    """
    if second_moments.shape != (inputs, inputs):
        raise ValueError(f"second_moments: got {list(second_moments.shape)}, expected [{inputs}, {inputs}]")
    matrix = second_moments.astype(np.float64)
    wrong = ~np.isfinite(matrix)
    if not wrong.any():
        wrong = np.diag(matrix.diagonal() < 0)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            "E106",
            f"{name}: second moments of its inputs: element [{row}, {column}] is {matrix[row, column]}, "
            "expected finite numbers and none below zero on the diagonal.",
            "The model overflows on the calibration text: check that it runs in float32.",
        )
    scale = matrix.diagonal().mean()
    if scale > 0:
        matrix /= scale
    symmetric: Float64 = (matrix + matrix.T) / 2
    return symmetric


def prepare(matrix: Float64) -> Moments:
    """Damps and factors what :func:`checked` returns, with as much more damping as the factoring takes."""
    damping, inputs = DAMPING, len(matrix)
    order = np.argsort(matrix.diagonal(), kind="stable")
    while True:
        damped = matrix + damping * np.eye(inputs)
        try:
            factor = np.linalg.cholesky(damped[np.ix_(order, order)])
        except np.linalg.LinAlgError:  # not positive: rounded away, or no second moments at all
            damping *= 10
            continue
        upper = np.ascontiguousarray(factor.T, dtype=np.float32)
        return Moments(damped.astype(np.float32), order, upper)


def row_errors(difference: Float32, matrix: Float64) -> Float64:
    """e^T H e of each row of errors ``[N, K]``: float64 ``[N]``."""
    wide = difference.astype(np.float64)
    result: Float64 = np.einsum("nk,nk->n", wide @ matrix, wide)
    return np.maximum(result, 0.0)
