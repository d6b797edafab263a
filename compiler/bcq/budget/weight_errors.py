# SPDX-License-Identifier: Apache-2.0
"""How far every format leaves a matrix from its weights, from a sample of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bcq.bcq import Float32
from bcq.budget.formats import FEW_BITS, Format
from bcq.solver import relative_error, solve

LEAST_ROWS = 4
# Squared errors of single weights spread about as much as their mean: 1 / sqrt(n), 1.6 and 3 % here. Many
# bits take the solver ten times as long as few.
SAMPLE_OF_FEW_BITS = 4096
SAMPLE_OF_MANY_BITS = 1024


def weight_errors(
    matrix: Float32, formats: Sequence[Format], method: str = "multistart", name: str = "weight"
) -> dict[Format, float]:
    """Relative errors, sum of squared errors over sum of squared weights, 0 for a dense matrix.

    Args:
        matrix: float32 ``[N, K]``.
        formats: what to try.
        method: the solver, one of ``bcq.matrices.plan.METHODS``.
        name: of the matrix, for errors.

    Raises:
        InputError: E106 as :func:`bcq.solver.solve`.
    """
    few, many = _sample(matrix, SAMPLE_OF_FEW_BITS), _sample(matrix, SAMPLE_OF_MANY_BITS)
    errors = {}
    for form in formats:
        if form.bits is None:
            errors[form] = 0.0
            continue
        rows = few if form.bits <= FEW_BITS else many
        group_size = form.group_size or rows.shape[1]
        errors[form] = relative_error(
            rows, solve(rows, form.bits, group_size, method, form.offset, name=name)
        )
    return errors


def _sample(matrix: Float32, weights: int) -> Float32:
    """Rows spread evenly over the matrix, so many that they have about ``weights`` elements."""
    rows, inputs = matrix.shape
    count = min(rows, max(LEAST_ROWS, -(-weights // inputs)))
    places = np.linspace(0, rows - 1, count).astype(int)
    return np.ascontiguousarray(matrix[places], np.float32)
