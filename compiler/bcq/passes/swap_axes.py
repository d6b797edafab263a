# SPDX-License-Identifier: Apache-2.0
"""Reshape to three axes, Transpose of the last two, Reshape back: one Transpose, as attention needs it."""

from __future__ import annotations

import onnx_ir as ir

from bcq.passes.sizes import Dims, Sizes, permutation
from bcq.passes.work import Work


def swap_axes(model: ir.Model, work: Work) -> None:
    """Rewrites the three nodes wherever the sizes prove that they only swap the last two axes."""
    sizes = Sizes(model)
    for last in list(model.graph):
        turn = _producer(last, "Reshape")
        first = None if turn is None else _producer(turn, "Transpose")
        if turn is None or first is None or first.op_type != "Reshape" or first.domain != "":
            continue
        shape, flat, result = (
            sizes.shape(value) for value in (first.inputs[0], first.outputs[0], last.outputs[0])
        )
        if shape is None or flat is None or result is None or not _swaps(shape, flat, result, turn):
            continue
        axes = list(range(len(shape)))
        axes[-2:] = [axes[-1], axes[-2]]
        new = ir.node("Transpose", [first.inputs[0]], {"perm": axes}, name=turn.name)
        ir.convenience.replace_nodes_and_values(
            model.graph, last, [last], [new], [last.outputs[0]], new.outputs
        )


def _producer(node: ir.Node, op_type: str) -> ir.Node | None:
    """What makes the first input of a node of this type."""
    if node.domain != "" or node.op_type != op_type or node.inputs[0] is None:
        return None
    return node.inputs[0].producer()


def _swaps(shape: Dims, flat: Dims, result: Dims, turn: ir.Node) -> bool:
    return (
        len(shape) > 2
        and len(flat) == 3
        and flat[1:] == shape[-2:]
        and permutation(turn, 3) == [0, 2, 1]
        and result == (*shape[:-2], shape[-1], shape[-2])
    )
