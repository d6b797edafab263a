# SPDX-License-Identifier: Apache-2.0
"""The graph pass: any MatMul, Gemm or Gather on a constant matrix becomes a BCQ operator, whoever wrote the graph."""

from __future__ import annotations

import onnx_ir as ir

from bcq.passes.report import MatrixRecord, PackReport
from bcq.passes.weights import FromBase, Left, MatrixRef, SolveOnTheFly, WeightSource
from bcq.progress import SILENT, Progress

__all__ = ["FromBase", "Left", "MatrixRecord", "MatrixRef", "PackReport", "SolveOnTheFly", "WeightSource", "run"]


def run(model: ir.Model, source: WeightSource, progress: Progress = SILENT) -> PackReport:
    """Packs the matrices of ``model`` in place."""
    raise NotImplementedError
