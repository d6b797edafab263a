# SPDX-License-Identifier: Apache-2.0
"""Removes dense matrices that nobody reads any more, and an exporter's notes about its own source code."""

from __future__ import annotations

import onnx_ir as ir

from bcq.passes.work import Work

_CARRIERS = frozenset({"Cast", "Constant", "Identity", "Transpose"})
_SMALL = 16  # elements: shapes, axes, scalars
_TRACE_PREFIX = "pkg."  # torch's exporter: stack traces with paths of the machine, names of Python classes
_TRACE_KEY = "namespace"


def sweep_dead(model: ir.Model, work: Work) -> None:
    """Drops unread nodes that only carried a constant, then initializers of packed matrices."""
    outputs = set(model.graph.outputs)
    for node in reversed(model.graph):
        result = node.outputs[0]
        if node.domain == "" and node.op_type in _CARRIERS and not result.uses() and result not in outputs:
            model.graph.remove(node, safe=True)
    dense = {id(copy) for matrix in work.matrices if matrix.packed is not None for copy in matrix.copies}
    keep = outputs.union(model.graph.inputs)
    for name, value in list(model.graph.initializers.items()):
        if id(value.const_value) in dense and not value.uses() and value not in keep:
            del model.graph.initializers[name]


def sweep_unread(model: ir.Model, work: Work) -> None:
    """Drops nodes that nobody reads, and small constants that only those read."""
    outputs = set(model.graph.outputs)
    for node in reversed(model.graph):
        read = any(output.uses() or output in outputs for output in node.outputs)
        if node.domain == "" and not read and not _has_body(node):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        unread = not value.uses() and value not in outputs and not value.is_graph_input()
        if unread and value.const_value is not None and value.const_value.size <= _SMALL:
            del model.graph.initializers[name]


def _has_body(node: ir.Node) -> bool:
    return any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())


def sweep_traces(model: ir.Model, work: Work) -> None:
    """Removes the exporter's notes from the whole model: megabytes, and paths of its machine."""
    _clean(model.metadata_props)
    for graph in model.graphs():
        _clean(graph.metadata_props)
        for value in (*graph.inputs, *graph.initializers.values()):
            _clean(value.metadata_props)
        for node in graph:
            _clean(node.metadata_props)
            for output in node.outputs:
                _clean(output.metadata_props)


def _clean(notes: dict[str, str]) -> None:
    for key in [key for key in notes if key.startswith(_TRACE_PREFIX) or key == _TRACE_KEY]:
        del notes[key]
