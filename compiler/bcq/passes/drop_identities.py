# SPDX-License-Identifier: Apache-2.0
"""Nodes that give what they get are passed by: reshapes to the same shape, products with one, full slices."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from bcq.passes import naming
from bcq.passes.sizes import ENDLESS, Sizes, permutation
from bcq.passes.work import Work

RESHAPE = ("", "Reshape", "")


def drop_identities(model: ir.Model, work: Work) -> None:
    """Lets readers of such a node read its input; a graph's output keeps its node."""
    sizes = Sizes(model)
    for node in list(model.graph):
        rule = _RULES.get(node.op_type) if node.domain == "" else None
        if rule is None or node.outputs[0].is_graph_output():
            continue
        source = rule(node, sizes)
        if source is not None:
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)


def _to_own_shape(node: ir.Node, sizes: Sizes) -> ir.Value | None:
    """Reshape and Expand."""
    shape = sizes.shape(node.inputs[0])
    return node.inputs[0] if shape is not None and shape == sizes.shape(node.outputs[0]) else None


def _back_to_own_shape(node: ir.Node, sizes: Sizes) -> ir.Value | None:
    """Reshapes in a row whose last gives the shape that the first got."""
    source, shape = node.inputs[0], sizes.shape(node.outputs[0])
    while source is not None and shape is not None:
        if sizes.shape(source) == shape:
            return source
        before = source.producer()
        source = before.inputs[0] if before is not None and before.op_identifier() == RESHAPE else None
    return None


def _turned_back(node: ir.Node, sizes: Sizes) -> ir.Value | None:
    """Two Transposes in a row of which the second undoes the first."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if before is None or before.op_identifier() != node.op_identifier():
        return None
    shape = sizes.shape(before.inputs[0])
    if shape is None:
        return None
    first, second = permutation(before, len(shape)), permutation(node, len(shape))
    return before.inputs[0] if [first[axis] for axis in second] == list(range(len(shape))) else None


def _in_own_order(node: ir.Node, sizes: Sizes) -> ir.Value | None:
    shape = sizes.shape(node.inputs[0])
    known = shape is not None and permutation(node, len(shape)) == list(range(len(shape)))
    return node.inputs[0] if known else _turned_back(node, sizes)


def _to_own_type(node: ir.Node, sizes: Sizes) -> ir.Value | None:
    source = node.inputs[0]
    same = source is not None and source.dtype == ir.DataType(node.attributes["to"].as_int())
    return source if same else None


def _of_everything(node: ir.Node, sizes: Sizes) -> ir.Value | None:
    starts, ends = sizes.numbers(node.inputs[1]), sizes.numbers(node.inputs[2])
    steps = sizes.numbers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    if starts is None or ends is None or steps is None:
        return None
    whole = not any(starts) and min(ends) >= ENDLESS and set(steps) == {1}
    return node.inputs[0] if whole else None


def _by_neutral(neutral: int, floats: bool) -> Callable[[ir.Node, Sizes], ir.Value | None]:
    """A product with one is exact in any type; a sum with zero loses the sign of a float's zero."""

    def rule(node: ir.Node, sizes: Sizes) -> ir.Value | None:
        for source, other in ((0, 1), (1, 0)):
            value, constant = node.inputs[source], node.inputs[other]
            if value is not None and constant is not None and _is_scalar(constant, neutral, floats):
                shape = sizes.shape(value)
                grows = len(constant.const_value.shape) > (0 if shape is None else len(shape))  # type: ignore[union-attr]
                return None if grows else value
        return None

    return rule


def _is_scalar(value: ir.Value, neutral: int, floats: bool) -> bool:
    """Whether a value is a constant of one element that is `neutral`; a float with a name is a parameter."""
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or tensor.size != 1:
        return False
    if tensor.dtype.is_floating_point() and not (floats and naming.is_nameless(value.name)):
        return False
    return bool((tensor.numpy() == neutral).all())


_RULES: dict[str, Callable[[ir.Node, Sizes], ir.Value | None]] = {
    "Reshape": _back_to_own_shape,
    "Expand": _to_own_shape,
    "Transpose": _in_own_order,
    "Cast": _to_own_type,
    "Identity": lambda node, sizes: node.inputs[0],
    "Slice": _of_everything,
    "Mul": _by_neutral(1, floats=True),
    "Add": _by_neutral(0, floats=False),
    "And": _by_neutral(True, floats=False),
}
