# SPDX-License-Identifier: Apache-2.0
"""Nodes that only prepare what GroupQueryAttention takes: a scaled query, a Split of joined Q, K and V."""

from __future__ import annotations

import onnx_ir as ir

from bcq.passes.naming import is_nameless
from bcq.passes.work import Work

_QKV = 3


def scale_in_attention(model: ir.Model, work: Work) -> None:
    """Rewrites attention(query * c) to attention with c times its scale; a power of two changes no bit."""
    for node in _attentions(model):
        product = _only_read_by_attention(node.inputs[0], "Mul")
        place = None if product is None else _scalar_place(product)
        if product is None or place is None:
            continue
        scalar, query = product.inputs[place], product.inputs[1 - place]
        assert scalar is not None  # `_scalar_place` found it
        assert scalar.const_value is not None
        scale = node.attributes["scale"].as_float() * scalar.const_value.numpy().item()
        node.attributes["scale"] = ir.AttrFloat32("scale", scale)
        node.replace_input_with(0, query)
        model.graph.remove(product, safe=True)


def pack_attention(model: ir.Model, work: Work) -> None:
    """Rewrites attention(Split(qkv)) to attention(qkv), which the operator splits itself."""
    for node in _attentions(model):
        split = _only_read_by_attention(node.inputs[0], "Split")
        if split is None or len(split.outputs) != _QKV or list(split.outputs) != list(node.inputs[:_QKV]):
            continue
        if any(len(part.uses()) != 1 or part.is_graph_output() for part in split.outputs):
            continue
        if split.attributes.get_int("axis", 0) not in (-1, 2):
            continue
        node.replace_input_with(0, split.inputs[0])
        for place in range(1, _QKV):
            node.replace_input_with(place, None)
        model.graph.remove(split, safe=True)


def _attentions(model: ir.Model) -> list[ir.Node]:
    wanted = ("com.microsoft", "GroupQueryAttention", "")
    return [node for node in model.graph if node.op_identifier() == wanted]


def _only_read_by_attention(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The producer of a value that nothing but one attention reads, if it is of this type."""
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_identifier()[:2] != ("", op_type):
        return None
    return None if len(value.uses()) != 1 or value.is_graph_output() else node


def _scalar_place(product: ir.Node) -> int | None:
    """Which input of a Mul is a constant of one element that is no parameter."""
    for place, value in enumerate(product.inputs):
        tensor = None if value is None or value.is_graph_input() else value.const_value
        if value is not None and tensor is not None and tensor.size == 1 and is_nameless(value.name):
            return place
    return None
