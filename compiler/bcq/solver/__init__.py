# SPDX-License-Identifier: Apache-2.0
"""From a dense matrix to bit planes and alphas: from the weights alone, or with second moments of inputs."""

from __future__ import annotations

from bcq.solver.calibrated import calibrated_error, solve_calibrated
from bcq.solver.solve import relative_error, solve

__all__ = ["calibrated_error", "relative_error", "solve", "solve_calibrated"]
