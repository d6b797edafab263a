# SPDX-License-Identifier: Apache-2.0
"""Alternating: codes by the nearest level, alphas by least squares, and again.

Source: Xu et al. 2018 (arXiv 1802.00150), algorithm 2, with the search over sorted groups of ``groups.py``.
"""

from __future__ import annotations

from bcq.solver.groups import Groups, assign, refit
from bcq.solver.levels import Float64, ordered

ROUNDS = 15


def alternate(groups: Groups, coefficients: Float64, rounds: int = ROUNDS) -> Float64:
    """Coefficients after ``rounds`` alternations; neither half-step raises the error of a group."""
    for _ in range(rounds):
        coefficients = ordered(refit(groups, assign(groups, coefficients)), groups.table.bits)
    return coefficients
