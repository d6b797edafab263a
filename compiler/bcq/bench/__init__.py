# SPDX-License-Identifier: Apache-2.0
"""The kernel bench: BcqMatMul against onnxruntime's own matrix products, in one interleaved run."""

from __future__ import annotations

from bcq.bench.measure import run
from bcq.bench.result import BenchResult, Measurement, to_ratios, to_table

__all__ = ["BenchResult", "Measurement", "run", "to_ratios", "to_table"]
