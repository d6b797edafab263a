# SPDX-License-Identifier: Apache-2.0
"""The graph pass: any MatMul, Gemm or Gather on a constant matrix becomes a BCQ operator."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from bcq.passes.carry_functions import carry_functions
from bcq.passes.find_matrices import find_matrices
from bcq.passes.fuse_shared_input import fuse_shared_input
from bcq.passes.merge_biases import merge_biases
from bcq.passes.modernize import modernize
from bcq.passes.pack_matrices import pack_matrices
from bcq.passes.report import Fusion, MatrixRecord, PackReport
from bcq.passes.report_computed import report_computed
from bcq.passes.rewrite_gather import rewrite_gather
from bcq.passes.rewrite_gemm import rewrite_gemm
from bcq.passes.rewrite_matmul import rewrite_matmul
from bcq.passes.sweep import sweep_dead, sweep_traces
from bcq.passes.weights import FromBase, Left, MatrixRef, SolveOnTheFly, WeightSource
from bcq.passes.work import Work
from bcq.progress import SILENT, Progress

__all__ = [
    "PIPELINE",
    "UNFUSED",
    "FromBase",
    "Fusion",
    "Left",
    "MatrixRecord",
    "MatrixRef",
    "PackReport",
    "SolveOnTheFly",
    "WeightSource",
    "run",
]

Pipeline = tuple[Callable[[ir.Model, Work], None], ...]
PIPELINE: Pipeline = (
    modernize,
    find_matrices,
    pack_matrices,
    report_computed,
    rewrite_matmul,
    rewrite_gemm,
    rewrite_gather,
    fuse_shared_input,
    merge_biases,
    carry_functions,
    sweep_dead,
    sweep_traces,
)
FUSING = (fuse_shared_input, merge_biases)
UNFUSED: Pipeline = tuple(step for step in PIPELINE if step not in FUSING)  # one operator a matrix


def run(
    model: ir.Model, source: WeightSource, progress: Progress = SILENT, pipeline: Pipeline = PIPELINE
) -> PackReport:
    """Packs the matrices of ``model`` in place.

    Args:
        model: any graph; names of its inputs and outputs stay.
        source: gives the packed form of each matrix.
        progress: one step a matrix.
        pipeline: the passes, in order.

    Returns:
        Every constant matrix that the graph multiplies with or looks up in, with what became of it.

    Raises:
        UnsupportedError: E401 for a model that is packed already, or whose opset is too old.
        InputError: E106 for a matrix with NaN or infinite values, E109 for one that does not fit its base.
    """
    work = Work(source, progress)
    for step in pipeline:
        step(model, work)
    return work.report
