# SPDX-License-Identifier: Apache-2.0
"""Products on flattened tokens, ``[B, S, K]`` to ``[B S, K]`` and back, run on the tokens as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from bcq import contract
from bcq.passes.fuse_shared_input import constant
from bcq.passes.naming import value_names
from bcq.passes.sizes import Dims, Sizes, noted
from bcq.passes.work import Work

# Each row of the result depends on the same row of the input only, whatever the rank.
_ROW_BY_ROW = frozenset(
    {
        *("Relu", "Gelu", "Tanh", "Sigmoid", "Erf", "Neg", "Sqrt", "Reciprocal", "Cast", "Identity"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Where", "LayerNormalization"),
    }
)


class Use(NamedTuple):
    """A node's input that reads a flattened value."""

    node: ir.Node
    place: int


@dataclass
class _Region:
    """Flattened values that hang together.

    Attributes:
        leading: the sizes that were flattened.
        flattens: the Reshapes that lead in.
        values: all flattened values.
    """

    leading: Dims
    flattens: list[ir.Node]
    values: list[ir.Value] = field(default_factory=list)


def keep_rank(model: ir.Model, work: Work) -> None:
    """Takes the flattening away wherever more Reshapes vanish than are needed at the edges.

    The Reshapes back become identities, which `drop_identities` removes.
    """
    sizes, taken = Sizes(model), value_names(model)
    inside = _regions(model.graph, sizes)
    for region in {id(region): region for region in inside.values()}.values():
        exits = _exits(region, inside, model.graph)
        back = [use for use in exits if _restores(use.node, region, sizes)]
        others = [value for value in region.values if _leaves(value, exits, back)]
        if back and len(others) < len(region.flattens) + len(back) and _are_known(others, sizes):
            _lift(model.graph, region, others, exits, back, sizes, taken)


def _regions(graph: ir.Graph, sizes: Sizes) -> dict[ir.Value, _Region]:
    """Every flattened value with its region; regions that meet in a node become one."""
    inside: dict[ir.Value, _Region] = {}
    for node in graph:
        region = _new_region(node, sizes)
        if region is None:
            region = _continued(node, inside, sizes)
        if region is not None:
            region.values.append(node.outputs[0])
            inside[node.outputs[0]] = region
    return inside


def _new_region(node: ir.Node, sizes: Sizes) -> _Region | None:
    if node.domain != "" or node.op_type != "Reshape" or node.outputs[0].is_graph_output():
        return None
    before, after = sizes.shape(node.inputs[0]), sizes.shape(node.outputs[0])
    if before is None or after is None or len(before) < 3 or len(after) != 2 or before[-1] != after[-1]:
        return None
    return _Region(before[:-1], [node])


def _continued(node: ir.Node, inside: dict[ir.Value, _Region], sizes: Sizes) -> _Region | None:
    """The region of a node that works row by row on flattened values; None for any other node."""
    found = [inside[value] for value in node.inputs if value in inside]
    if not found or not _works_by_rows(node, inside, sizes):
        return None
    first = found[0]
    if any(other.leading != first.leading for other in found):
        return None
    for other in found[1:]:
        if other is not first:
            first.flattens += other.flattens
            first.values += other.values
            inside.update(dict.fromkeys(other.values, first))
    return first


def _works_by_rows(node: ir.Node, inside: dict[ir.Value, _Region], sizes: Sizes) -> bool:
    rest = [value for value in node.inputs if value is not None and value not in inside]
    if node.domain == contract.DOMAIN:
        return node.op_type == contract.MATMUL.name
    if node.domain != "":
        return False
    if node.op_type == "MatMul":
        return node.inputs[0] in inside and len(sizes.shape(node.inputs[1]) or ()) == 2 and len(rest) == 1
    if node.op_type == "LayerNormalization":
        alone = node.attributes.get_int("axis", -1) == -1 and len(node.outputs) == 1
        return alone and node.inputs[0] in inside and len(rest) == len(node.inputs) - 1
    shapes = [sizes.shape(value) for value in rest]
    return node.op_type in _ROW_BY_ROW and all(shape is not None and len(shape) <= 1 for shape in shapes)


def _exits(region: _Region, inside: dict[ir.Value, _Region], graph: ir.Graph) -> list[Use]:
    """All readers of the region's values that are not of the region."""
    return [
        Use(node, index)
        for value in region.values
        for node, index in value.uses()
        if node.graph is not graph or inside.get(node.outputs[0]) is not region
    ]


def _restores(node: ir.Node, region: _Region, sizes: Sizes) -> bool:
    if node.domain != "" or node.op_type != "Reshape":
        return False
    shape, flat = sizes.shape(node.outputs[0]), sizes.shape(node.inputs[0])
    return shape is not None and flat is not None and shape == (*region.leading, flat[-1])


def _leaves(value: ir.Value, exits: list[Use], back: list[Use]) -> bool:
    """Whether somebody needs the flattened value as it is."""
    return value.is_graph_output() or any(
        use.node.inputs[use.place] is value and use not in back for use in exits
    )


def _are_known(values: list[ir.Value], sizes: Sizes) -> bool:
    return all(
        isinstance((sizes.shape(value) or ("",))[-1], int) and not value.is_graph_output() for value in values
    )


def _lift(
    graph: ir.Graph,
    region: _Region,
    others: list[ir.Value],
    exits: list[Use],
    back: list[Use],
    sizes: Sizes,
    taken: set[str],
) -> None:
    for value in others:
        _flatten_for(graph, value, [use for use in exits if use not in back], sizes, taken)
    for value in region.values:
        shape = sizes.shape(value)
        value.shape = None if shape is None else noted((*region.leading, shape[-1]))
    for node in region.flattens:
        source = node.inputs[0]
        assert source is not None  # a Reshape has its input
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        graph.remove(node, safe=True)


def _flatten_for(graph: ir.Graph, value: ir.Value, uses: list[Use], sizes: Sizes, taken: set[str]) -> None:
    """Gives readers that need two axes a flattened copy behind the node that makes the value."""
    producer, shape = value.producer(), sizes.shape(value)
    assert producer is not None  # no region holds an input
    assert shape is not None
    width = shape[-1]
    target = constant(graph, np.array([-1, width], np.int64), f"{value.name}_flat_shape", taken)
    flatten = ir.node("Reshape", [value, target])
    flatten.outputs[0].name = f"{target.name}d"
    flatten.outputs[0].type = value.type
    graph.insert_after(producer, flatten)
    for use in uses:
        if use.node.inputs[use.place] is value:
            use.node.replace_input_with(use.place, flatten.outputs[0])
