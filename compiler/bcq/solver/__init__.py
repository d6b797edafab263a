# SPDX-License-Identifier: Apache-2.0
"""From a dense matrix to bit planes and alphas: solvers that look at the weights alone."""

from __future__ import annotations

from bcq.solver.solve import relative_error, solve

__all__ = ["relative_error", "solve"]
