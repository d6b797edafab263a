# SPDX-License-Identifier: Apache-2.0
"""From a stored constant to the nodes that really read it, through Cast, Identity and Transpose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

FLOAT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Use:
    """One node input that receives a constant.

    Attributes:
        node: the reader, or None when the constant is an output of the graph.
        index: which input of the node.
        flipped: the reader sees the stored matrix transposed.
        dtype: element type that the reader sees.
    """

    node: ir.Node | None
    index: int
    flipped: bool
    dtype: ir.DataType


def constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every float constant of two or more dimensions: initializers and Constant nodes, subgraphs included."""
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            if value.const_value is not None and _is_float_matrix(value.const_value):
                yield value, value.const_value
        for node in graph:
            if node.op_type == "Constant" and node.domain == "":
                tensor = ir.convenience.get_const_tensor(node.outputs[0])
                if tensor is not None and _is_float_matrix(tensor):
                    yield node.outputs[0], tensor


def uses(value: ir.Value, dtype: ir.DataType, flipped: bool = False) -> Iterator[Use]:
    """All readers of a constant, looked up through nodes that only move or convert it."""
    if value.is_graph_output():
        yield Use(None, 0, flipped, dtype)
    for node, index in value.uses():
        turned = _passes_through(node)
        if turned is None:
            yield Use(node, index, flipped, dtype)
        else:
            yield from uses(node.outputs[0], _type_after(node, dtype), flipped != turned)


def _passes_through(node: ir.Node) -> bool | None:
    """None for a real reader; else whether the node transposes."""
    if node.domain != "":
        return None
    if node.op_type == "Identity":
        return False
    if node.op_type == "Cast":
        return False if _type_after(node, ir.DataType.UNDEFINED) in FLOAT_TYPES else None
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        order = [1, 0] if perm is None else list(perm.as_ints())
        return True if order == [1, 0] else None
    return None


def _type_after(node: ir.Node, dtype: ir.DataType) -> ir.DataType:
    if node.op_type != "Cast" or node.attributes["to"].is_ref():
        return dtype
    return ir.DataType(node.attributes["to"].as_int())


def _is_float_matrix(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in FLOAT_TYPES and len(tensor.shape) >= 2 and tensor.size > 0
