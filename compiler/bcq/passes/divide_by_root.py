# SPDX-License-Identifier: Apache-2.0
"""A product with the reciprocal of a root becomes a quotient: one rounding less, and onnxruntime knows it.

It runs the mean of squares, the root, the quotient and the scale of a normalization as one operator then.
"""

from __future__ import annotations

import onnx_ir as ir

from bcq.passes.work import Work


def divide_by_root(model: ir.Model, work: Work) -> None:
    """Rewrites Mul(x, Reciprocal(Sqrt(v))) to Div(x, Sqrt(v))."""
    for node in list(model.graph):
        if node.domain != "" or node.op_type != "Mul":
            continue
        for index in (1, 0):
            root = _root(node.inputs[index])
            if root is not None:
                _divide(model.graph, node, node.inputs[1 - index], root)
                break


def _root(value: ir.Value | None) -> ir.Value | None:
    """The Sqrt whose reciprocal a value is."""
    reciprocal = None if value is None else value.producer()
    if reciprocal is None or reciprocal.op_identifier()[:2] != ("", "Reciprocal"):
        return None
    root = reciprocal.inputs[0]
    sqrt = None if root is None else root.producer()
    return root if sqrt is not None and sqrt.op_identifier()[:2] == ("", "Sqrt") else None


def _divide(graph: ir.Graph, product: ir.Node, value: ir.Value | None, root: ir.Value) -> None:
    quotient = ir.node("Div", [value, root], name=product.name)
    ir.convenience.replace_nodes_and_values(
        graph, product, [product], [quotient], product.outputs, quotient.outputs
    )
