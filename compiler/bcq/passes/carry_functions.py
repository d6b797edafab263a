# SPDX-License-Identifier: Apache-2.0
"""Puts the operators' functions into the model, so that it also runs where nobody knows the operators."""

from __future__ import annotations

import onnx_ir as ir

from bcq import contract
from bcq.errors import UnsupportedError
from bcq.exporting import functions
from bcq.passes.work import GATHER, Work


def carry_functions(model: ir.Model, work: Work) -> None:
    """Imports the operators' domain and adds the functions of those that the graph uses.

    Raises:
        UnsupportedError: E401 when one model needs both activation types and its opset cannot express that.
    """
    used = {node.op_type for node in model.graph if node.domain == contract.DOMAIN}
    if not used:
        return
    activations = {
        reading.dtype
        for matrix in work.matrices
        if matrix.packed is not None
        for reading in matrix.readings
        if reading.kind != GATHER
    }
    opset = model.opset_imports.setdefault("", functions.MIN_OPSET)
    if len(activations) > 1 and opset < functions.CAST_LIKE_SINCE:
        raise UnsupportedError(
            "E401",
            f"the model multiplies in {len(activations)} types of floats and uses opset {opset}, "
            f"expected {functions.CAST_LIKE_SINCE} or later.",
            "Convert it first with onnx.version_converter, or export it again.",
        )
    model.opset_imports[contract.DOMAIN] = contract.OPSET_VERSION
    for function in functions.functions(opset, next(iter(activations), ir.DataType.FLOAT)):
        if function.name in used:
            model.functions[function.identifier()] = function
