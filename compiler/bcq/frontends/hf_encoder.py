# SPDX-License-Identifier: Apache-2.0
"""An encoder such as BERT as a graph: hidden states, or the logits of its head."""

from __future__ import annotations

import inspect
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from bcq.frontends.simplify import OPSET_VERSION

HIDDEN, LOGITS = ("last_hidden_state",), ("logits",)
SPAN = ("start_logits", "end_logits")


class Encoder(nn.Module):
    """The model with named tensors in and the wanted tensors out."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The tensors of `outputs`, each ``[batch, sequence, ...]`` or ``[batch, classes]``."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(result[name] for name in self.outputs)


def export_encoder(model: Any, class_name: str) -> ir.Model:
    """Exports an encoder.

    Args:
        model: transformers model; its parameters' values do not matter.
        class_name: its class, which decides the outputs.

    Returns:
        A graph with inputs ``input_ids``, ``attention_mask`` and (where the model tells segments apart)
        ``token_type_ids``, and output ``last_hidden_state``, ``logits`` or ``start_logits``, ``end_logits``.
    """
    names = ["input_ids", "attention_mask"]
    if takes_token_types(model):
        names.append("token_type_ids")
    outputs = outputs_of(class_name)
    arguments: dict[str, Any] = {name: torch.ones(2, 5, dtype=torch.int64) for name in names}
    arguments["token_type_ids"] = arguments.get("token_type_ids", torch.zeros(0)) * 0
    program = torch.onnx.export(
        Encoder(model, outputs),
        kwargs={name: arguments[name] for name in names},
        dynamo=True,
        dynamic_shapes={name: {0: "batch_size", 1: "sequence_length"} for name in names},
        input_names=names,
        output_names=list(outputs),
        opset_version=OPSET_VERSION,
        optimize=False,
        verbose=False,
    )
    assert program is not None  # only fallback exports return None
    return program.model


def outputs_of(class_name: str) -> tuple[str, ...]:
    """The outputs of a class, by the fields of its transformers result."""
    if class_name.endswith("ForQuestionAnswering"):
        return SPAN
    return HIDDEN if class_name.endswith("Model") else LOGITS


def takes_token_types(model: Any) -> bool:
    """Whether the model tells segments apart; RoBERTa has the argument but one segment only."""
    declared = "token_type_ids" in inspect.signature(model.forward).parameters
    return declared and getattr(model.config, "type_vocab_size", 0) > 1
