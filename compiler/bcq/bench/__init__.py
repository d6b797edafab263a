# SPDX-License-Identifier: Apache-2.0
"""The kernel bench: BcqMatMul against its peers, in one interleaved run whose results are checked."""

from __future__ import annotations

from bcq.bench.measure import run
from bcq.bench.plan import Plan, Problem
from bcq.bench.result import BenchResult, Measurement
from bcq.bench.tables import to_markdown, to_table

__all__ = ["BenchResult", "Measurement", "Plan", "Problem", "run", "to_markdown", "to_table"]
