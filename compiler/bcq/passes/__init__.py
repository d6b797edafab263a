# SPDX-License-Identifier: Apache-2.0
"""The graph pass: any MatMul, Gemm or Gather on a constant matrix becomes a BCQ operator."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from bcq.passes.carry_functions import carry_functions
from bcq.passes.constant_targets import constant_targets
from bcq.passes.divide_by_root import divide_by_root
from bcq.passes.drop_identities import drop_identities
from bcq.passes.find_matrices import find_matrices
from bcq.passes.fold_into_attention import pack_attention, scale_in_attention
from bcq.passes.fuse_shared_input import fuse_shared_input
from bcq.passes.keep_rank import keep_rank
from bcq.passes.merge_biases import merge_biases
from bcq.passes.merge_unsqueezes import merge_unsqueezes
from bcq.passes.modernize import modernize
from bcq.passes.pack_matrices import pack_matrices
from bcq.passes.report import Fusion, MatrixRecord, PackReport
from bcq.passes.report_computed import report_computed
from bcq.passes.rewrite_gather import rewrite_gather
from bcq.passes.rewrite_gemm import rewrite_gemm
from bcq.passes.rewrite_matmul import rewrite_matmul
from bcq.passes.share_constants import share_constants
from bcq.passes.share_nodes import share_nodes
from bcq.passes.share_sizes import share_sizes
from bcq.passes.sink_scalars import sink_scalars
from bcq.passes.sink_split import sink_split
from bcq.passes.swap_axes import swap_axes
from bcq.passes.sweep import sweep_dead, sweep_traces, sweep_unread
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
PACK: Pipeline = (
    modernize,
    find_matrices,
    pack_matrices,
    report_computed,
    rewrite_matmul,
    rewrite_gemm,
    rewrite_gather,
)
TIDY: Pipeline = (  # fewer small nodes, the same values
    share_constants,
    share_sizes,
    drop_identities,
    keep_rank,
    swap_axes,
    merge_unsqueezes,
    drop_identities,
    constant_targets,
    share_constants,
    share_nodes,
    divide_by_root,
)
FUSE: Pipeline = (fuse_shared_input, merge_biases)
ATTEND: Pipeline = (sweep_unread, scale_in_attention, pack_attention)
SPLIT: Pipeline = (sink_scalars, sink_split, drop_identities, share_constants, sweep_unread)
FINISH: Pipeline = (carry_functions, sweep_dead, sweep_traces)
PIPELINE: Pipeline = PACK + TIDY + FUSE + ATTEND + SPLIT + FINISH
UNFUSED: Pipeline = PACK + TIDY + ATTEND + SPLIT + FINISH  # one operator a matrix


def run(
    model: ir.Model,
    source: WeightSource,
    progress: Progress = SILENT,
    pipeline: Pipeline = PIPELINE,
    accuracy_level: int = 0,
) -> PackReport:
    """Packs the matrices of ``model`` in place.

    Args:
        model: any graph; names of its inputs and outputs stay.
        source: gives the packed form of each matrix.
        progress: one step a matrix.
        pipeline: the passes, in order.
        accuracy_level: of every product, see ``ops/README.md``.

    Returns:
        Every constant matrix that the graph multiplies with or looks up in, with what became of it.

    Raises:
        UnsupportedError: E401 for a model that is packed already, or whose opset is too old.
        InputError: E106 for a matrix with NaN or infinite values, E109 for one that does not fit its base.
    """
    work = Work(source, progress, accuracy_level)
    for step in pipeline:
        step(model, work)
    return work.report
