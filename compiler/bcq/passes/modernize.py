# SPDX-License-Identifier: Apache-2.0
"""Brings a graph to a form that the other passes and the operators' functions accept."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from bcq import contract
from bcq.errors import UnsupportedError
from bcq.exporting import functions
from bcq.passes.work import Work

IR_VERSION = 10  # what every ONNX Runtime that the library knows can read; no file of ours needs more
_INITIALIZERS_APART_SINCE = 4  # before, every initializer had to be listed among the graph's inputs


def modernize(model: ir.Model, work: Work) -> None:
    """Sets the IR version, inlines model-local functions, refuses what cannot carry the operators.

    Raises:
        UnsupportedError: E401 for a model that is packed already or whose opset is too old.
    """
    if contract.DOMAIN in model.opset_imports:
        raise UnsupportedError(
            "E401",
            f"the model imports the domain '{contract.DOMAIN}' already: it is packed.",
            "Start from the dense model.",
        )
    opset = model.opset_imports.get("", functions.MIN_OPSET)
    if opset < functions.MIN_OPSET:
        raise UnsupportedError(
            "E401",
            f"the model uses opset {opset}, expected {functions.MIN_OPSET} or later.",
            "Convert it first with onnx.version_converter, or export it again.",
        )
    if model.ir_version < _INITIALIZERS_APART_SINCE:
        common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = IR_VERSION
    if model.functions:
        _inline(model)


def _inline(model: ir.Model) -> None:
    """Puts the model's own functions in the place of their calls."""
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            expected = model.opset_imports.get(domain, version)
            if version != expected:
                raise UnsupportedError(
                    "E401",
                    f"function '{function.name}' uses opset {version} of domain '{domain}', "
                    f"the model {expected}.",
                    "Convert the model with onnx.version_converter, or export it with one opset.",
                )
    common.InlinePass()(model)
