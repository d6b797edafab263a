# SPDX-License-Identifier: Apache-2.0
"""Folds what an exported graph computes from constants, but never a parameter."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer._constant_folding import FoldConstantsPass

# The pass itself, because its public wrappers also merge initializers of equal value, and parameters that are
# not loaded yet are all zero.

OPSET_VERSION = 21
_LARGEST_INPUT = 1024
_LARGEST_OUTPUT = 1 << 20


def simplify(model: ir.Model, parameters: Collection[str]) -> None:
    """Shortens a graph in place.

    Args:
        model: as the torch exporter left it.
        parameters: initializers whose values are placeholders: no node that reads one is folded.
    """
    kept = frozenset(parameters)

    def should_fold(node: ir.Node) -> bool | None:
        reads_parameter = any(value is not None and value.name in kept for value in node.inputs)
        return False if reads_parameter else None

    fold = FoldConstantsPass(
        shape_inference=True,
        input_size_limit=_LARGEST_INPUT,
        output_size_limit=_LARGEST_OUTPUT,
        should_fold=should_fold,
    )
    ir.passes.Sequential(
        common.InlinePass(),
        ir.passes.PassManager([fold, common.RemoveUnusedNodesPass()], steps=2, early_stop=True),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # it has no annotations
        common.RemoveUnusedOpsetsPass(),
    )(model)
