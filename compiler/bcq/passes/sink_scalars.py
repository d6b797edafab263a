# SPDX-License-Identifier: Apache-2.0
"""A product with a scalar moves behind the Reshape and Transpose that follow it, out of other passes' way."""

from __future__ import annotations

import onnx_ir as ir

from bcq.passes.naming import is_nameless
from bcq.passes.work import Work

_MOVES = frozenset({"Reshape", "Transpose"})


def sink_scalars(model: ir.Model, work: Work) -> None:
    """Swaps Mul by a constant scalar with its only reader while that one only moves elements; exact."""
    for product in list(model.graph):
        scaled = _scaled(product)
        if scaled is None:
            continue
        while (mover := _only_mover(product.outputs[0])) is not None:
            _swap(model.graph, product, scaled, mover)


def _scaled(node: ir.Node) -> int | None:
    """Which input of a Mul is scaled by the other, a constant of rank 0; None for any other node."""
    if node.domain != "" or node.op_type != "Mul":
        return None
    for index in (0, 1):
        value, scalar = node.inputs[index], node.inputs[1 - index]
        if value is None or scalar is None or scalar.const_value is None or scalar.is_graph_input():
            continue
        if len(scalar.const_value.shape) == 0 and is_nameless(scalar.name) and value.producer() is not None:
            return index
    return None


def _only_mover(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, index = uses[0]
    moves = node.domain == "" and node.op_type in _MOVES and index == 0 and node.graph is value.graph
    return node if moves and not node.outputs[0].is_graph_output() else None


def _swap(graph: ir.Graph, product: ir.Node, scaled: int, mover: ir.Node) -> None:
    """product, mover becomes mover, product."""
    source, before, after = product.inputs[scaled], product.outputs[0], mover.outputs[0]
    ir.convenience.replace_all_uses_with(after, before)
    mover.replace_input_with(0, source)
    product.replace_input_with(scaled, after)
    before.shape = after.shape
    graph.remove(product)
    graph.insert_after(mover, product)
