# SPDX-License-Identifier: Apache-2.0
"""Logits of the last positions alone, for whoever asks: an input that nobody has to feed.

To continue a prompt takes the logits of its last token; the head is a fifth of all weights of a small model,
and its result for all tokens of a prompt is larger than all other values together. The graph therefore has an
initializer that is an input too, ``logits_to_keep``: 0, the default, gives the logits of all positions, as
perplexity and `bcq verify` need them; n gives those of the last n.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

INPUT = "logits_to_keep"
LENGTH = "logits_length"  # the name of the dimension that it decides
_DOMAIN, _MARK = "bcq_export", "Kept"
_END = np.iinfo(np.int64).max


@contextlib.contextmanager
def marked_head(model: Any) -> Iterator[None]:
    """Within the block, what the head of a model reads passes a node that `open_logits` finds."""
    head = model.get_output_embeddings()
    if head is None:
        yield
        return

    def mark(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = arguments
        kept = torch.onnx.ops.symbolic(
            f"{_DOMAIN}::{_MARK}", [hidden], {}, dtype=hidden.dtype, shape=hidden.shape, version=1
        )
        return (kept, *rest)

    hook = head.register_forward_pre_hook(mark)
    try:
        yield
    finally:
        hook.remove()


def open_logits(model: ir.Model) -> None:
    """Makes the mark a Slice of the last ``logits_to_keep`` positions; a graph without mark stays."""
    mark = next((node for node in model.graph if node.op_identifier()[:2] == (_DOMAIN, _MARK)), None)
    if mark is None:
        return
    keep = _initializer(model, INPUT, 0)
    model.graph.inputs.append(keep)
    start = ir.node("Neg", [keep])  # of 0 it is 0: from the start on
    hidden = mark.outputs[0]
    bounds = [_initializer(model, f"{INPUT}_end", _END), _initializer(model, f"{INPUT}_axis", 1)]
    kept = ir.node("Slice", [mark.inputs[0], start.outputs[0], *bounds])
    start.outputs[0].name, kept.outputs[0].name = f"{INPUT}_start", f"{hidden.name}_kept"
    kept.outputs[0].type = hidden.type
    ir.convenience.replace_nodes_and_values(model.graph, mark, [mark], [start, kept], [hidden], kept.outputs)
    model.opset_imports.pop(_DOMAIN, None)
    for output in model.graph.outputs:
        if output.name == "logits" and output.shape is not None:
            output.shape = ir.Shape([output.shape[0], LENGTH, *list(output.shape)[2:]])


def _initializer(model: ir.Model, name: str, number: int) -> ir.Value:
    tensor = ir.Tensor(np.array([number], np.int64), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value
