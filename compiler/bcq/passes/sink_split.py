# SPDX-License-Identifier: Apache-2.0
"""Parts of a Split that are all cut into heads and turned alike: cut and turned whole, and split then."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bcq.passes.fuse_shared_input import constant
from bcq.passes.naming import fresh, value_names
from bcq.passes.sizes import Dims, Sizes, noted, permutation
from bcq.passes.work import Work


@dataclass(frozen=True)
class _Branch:
    """What becomes of one part.

    Attributes:
        nodes: Reshape and, where there is one, Transpose.
        heads: into how many heads.
        size: elements of a head.
        perm: order of axes, or None without Transpose.
    """

    nodes: tuple[ir.Node, ...]
    heads: int
    size: int
    perm: tuple[int, ...] | None


def sink_split(model: ir.Model, work: Work) -> None:
    """Rewrites Split, Reshape ..., Transpose ... to Reshape, Transpose, Split; elements only move."""
    sizes, taken = Sizes(model), value_names(model)
    for split in list(model.graph):
        shape = sizes.shape(split.inputs[0]) if split.op_identifier()[:2] == ("", "Split") else None
        if shape is None or split.attributes.get_int("axis", 0) not in (-1, len(shape) - 1):
            continue
        branches = [_branch(part, shape[:-1], sizes) for part in split.outputs]
        alike = {(branch.size, branch.perm) for branch in branches if branch is not None}
        if len(branches) > 1 and None not in branches and len(alike) == 1:
            found = [branch for branch in branches if branch is not None]
            _sink(model.graph, split, shape[:-1], found, taken)


def _branch(part: ir.Value, leading: Dims, sizes: Sizes) -> _Branch | None:
    cut = _only_reader(part, "Reshape")
    shape = None if cut is None else sizes.shape(cut.outputs[0])
    if cut is None or shape is None or len(shape) != len(leading) + 2 or shape[:-2] != leading:
        return None
    heads, size = shape[-2:]
    if not isinstance(heads, int) or not isinstance(size, int) or heads * size == 0:
        return None
    turn = _only_reader(cut.outputs[0], "Transpose")
    if turn is None:
        return _Branch((cut,), heads, size, None)
    return _Branch((cut, turn), heads, size, tuple(permutation(turn, len(shape))))


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, index = uses[0]
    fits = node.domain == "" and node.op_type == op_type and index == 0 and node.graph is value.graph
    return node if fits else None


def _sink(graph: ir.Graph, split: ir.Node, leading: Dims, branches: list[_Branch], taken: set[str]) -> None:
    whole, first = split.inputs[0], branches[0]
    assert whole is not None  # a Split has its input
    name, total = f"{whole.name}_heads", sum(branch.heads for branch in branches)
    target = constant(
        graph, np.array([0] * len(leading) + [total, first.size], np.int64), f"{name}_shape", taken
    )
    cut = ir.node("Reshape", [whole, target])
    nodes, dims, axis = [cut], (*leading, total, first.size), len(leading)
    _describe(cut, whole, dims, fresh(name, taken))
    if first.perm is not None:
        turn = ir.node("Transpose", [cut.outputs[0]], {"perm": list(first.perm)})
        dims, axis = tuple(dims[place] for place in first.perm), first.perm.index(axis)
        _describe(turn, whole, dims, fresh(f"{name}_turned", taken))
        nodes.append(turn)
    counts = constant(
        graph, np.array([branch.heads for branch in branches], np.int64), f"{name}_counts", taken
    )
    parts = ir.node("Split", [nodes[-1].outputs[0], counts], {"axis": axis}, num_outputs=len(branches))
    results = [branch.nodes[-1].outputs[0] for branch in branches]
    old = [node for branch in branches for node in reversed(branch.nodes)]
    ir.convenience.replace_nodes_and_values(graph, split, old, [*nodes, parts], results, parts.outputs)
    graph.remove(split, safe=True)


def _describe(node: ir.Node, like: ir.Value, dims: Dims, name: str) -> None:
    output = node.outputs[0]
    output.name, output.type, output.shape = name, like.type, noted(dims)
