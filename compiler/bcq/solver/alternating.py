# SPDX-License-Identifier: Apache-2.0
"""Alternating: codes by the nearest level, alphas by least squares, and again.

Source: Xu et al. 2018 (arXiv 1802.00150), algorithm 2, with the search over sorted groups of ``groups.py``.
"""

from __future__ import annotations

import numpy as np

from bcq.solver.groups import Groups, assign, refit, select
from bcq.solver.levels import Float64, ordered

ROUNDS = 15


def alternate(groups: Groups, coefficients: Float64, rounds: int = ROUNDS) -> Float64:
    """Coefficients after ``rounds`` alternations; neither half-step raises the error of a group.

    A group whose coefficients did not move is at a fixed point and is left out of later rounds.
    """
    result: Float64 = coefficients.copy()
    rows = np.arange(groups.rows)
    current = coefficients
    for _ in range(rounds):
        following = ordered(refit(groups, assign(groups, current)), groups.table.bits)
        moved = np.flatnonzero((following != current).any(axis=1))
        result[rows] = following
        current = following
        if len(moved) < 0.75 * len(rows):
            rows, groups, current = rows[moved], select(groups, moved), following[moved]
        if not len(rows):
            break
    return result
