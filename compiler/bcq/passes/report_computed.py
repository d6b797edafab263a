# SPDX-License-Identifier: Apache-2.0
"""Reports matrices that the graph computes from constants (dequantized or concatenated): they stay dense."""

from __future__ import annotations

import onnx_ir as ir

from bcq.passes import naming, trace
from bcq.passes.find_matrices import matrix_kind
from bcq.passes.report import MatrixRecord
from bcq.passes.work import GATHER, GEMM, MATMUL, Work

_MOVES = frozenset({"Cast", "Identity", "Transpose"})


def report_computed(model: ir.Model, work: Work) -> None:
    """Adds what cannot be packed without folding constants first: the share of packed bytes stays honest."""
    constant = _constant_values(model)
    for node in model.graph:
        kind = next((kind for use in _weight_uses(node) if (kind := matrix_kind(use))), None)
        value = None if kind is None else node.inputs[0 if kind == GATHER else 1]
        if kind is None or value not in constant:
            continue
        source = _computed_by(value)
        shape = _shape(value) or _shape_from(source)
        if source is not None and len(shape) == 2:
            work.report.matrices.append(_record(node, kind, source, shape))


def _weight_uses(node: ir.Node) -> list[trace.Use]:
    return [trace.Use(node, index, False, ir.DataType.FLOAT) for index in range(min(2, len(node.inputs)))]


def _constant_values(model: ir.Model) -> set[ir.Value]:
    """Values of the main graph that depend on constants alone."""
    inputs = set(model.graph.inputs)
    constant = {value for value in model.graph.initializers.values() if value not in inputs}
    for node in model.graph:
        given = [value for value in node.inputs if value is not None]
        if node.op_type == "Constant" or (given and constant.issuperset(given)):
            constant.update(node.outputs)
    return constant


def _computed_by(value: ir.Value) -> ir.Node | None:
    """The first node, seen from the reader, that does more than move or convert; None when there is none."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return None if node is None or node.op_type == "Constant" else node


def _record(reader: ir.Node, kind: str, source: ir.Node, shape: list[int]) -> MatrixRecord:
    stored = source.outputs[0].name
    reads_kn = kind == MATMUL or (kind == GEMM and not reader.attributes.get_int("transB", 0))
    rows, inputs = reversed(shape) if reads_kn else shape
    return MatrixRecord(
        name=naming.name_after(reader) if naming.is_nameless(stored) else str(stored),
        kinds=(kind,),
        rows=rows,
        inputs=inputs,
        bits=None,
        group_size=0,
        dense_bytes=4 * rows * inputs,
        packed_bytes=0,
        reason=f"{source.op_type} '{source.name or stored}' computes it from constants; fold them first",
    )


def _shape_from(source: ir.Node | None) -> list[int]:
    """The shape of what the node computes, as far as the graph tells; dequantizing keeps it."""
    if source is None:
        return []
    given = source.inputs[0] if source.op_type == "DequantizeLinear" else None
    return _shape(source.outputs[0]) or _shape(given)


def _shape(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None or not value.shape.is_static():
        return []
    return [int(size) for size in value.shape.numpy()]
