# SPDX-License-Identifier: Apache-2.0
"""Constant biases behind the Split of a fused product become one Add before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bcq import contract, fused
from bcq.passes import naming
from bcq.passes.fuse_shared_input import constant
from bcq.passes.work import Work


def merge_biases(model: ir.Model, work: Work) -> None:
    """Rewrites BcqMatMul, Split, Add ... Add to BcqMatMul, Add, Split; sums keep their bits."""
    taken = naming.value_names(model)
    for split in list(model.graph):
        if split.op_identifier()[:2] != ("", "Split"):
            continue
        product = split.inputs[0].producer() if split.inputs[0] is not None else None
        if product is None or product.domain != contract.DOMAIN or fused.NOTE not in product.metadata_props:
            continue
        widths = [part.rows for part in fused.read_note(product.metadata_props)]
        adds = [_bias_add(part, width) for part, width in zip(split.outputs, widths, strict=True)]
        if all(adds):
            _merge(model.graph, product, split, [add for add in adds if add is not None], taken)


def _bias_add(part: ir.Value, width: int) -> tuple[ir.Node, ir.Value] | None:
    """The only reader of a part and the bias that it adds; None when it does anything else."""
    if part.is_graph_output() or len(part.uses()) != 1:
        return None
    node, index = next(iter(part.uses()))
    if node.op_identifier()[:2] != ("", "Add") or node.graph is not part.graph:
        return None
    bias = node.inputs[1 - index]
    if bias is None or not bias.is_initializer() or bias.is_graph_input() or bias.const_value is None:
        return None
    fits = bias.dtype == part.dtype and tuple(bias.const_value.shape.numpy()) == (width,)
    return (node, bias) if fits else None


def _merge(
    graph: ir.Graph,
    product: ir.Node,
    split: ir.Node,
    adds: list[tuple[ir.Node, ir.Value]],
    taken: set[str],
) -> None:
    biases = [bias for _, bias in adds]
    arrays = [bias.const_value.numpy() for bias in biases if bias.const_value is not None]
    names = [str(bias.name) for bias in biases]
    whole = constant(graph, np.concatenate(arrays), fused.joined_name(names), taken)
    unbiased = product.outputs[0]
    total = ir.node("Add", [unbiased, whole], metadata_props=dict(adds[0][0].metadata_props))
    total.outputs[0].name = naming.fresh(f"{unbiased.name}_biased", taken)
    total.outputs[0].type, total.outputs[0].shape = unbiased.type, unbiased.shape
    fused.write_note(total.metadata_props, fused.parts_of(names, [len(array) for array in arrays]))
    parts = ir.node("Split", [total.outputs[0], split.inputs[1]], {"axis": -1}, num_outputs=len(adds))
    nodes = [add for add, _ in adds]
    ir.convenience.replace_nodes_and_values(
        graph, split, nodes, [total, parts], [add.outputs[0] for add in nodes], parts.outputs
    )
    graph.remove(split, safe=True)
    for bias in dict.fromkeys(biases):
        if not bias.uses() and not bias.is_graph_output():
            del graph.initializers[str(bias.name)]
