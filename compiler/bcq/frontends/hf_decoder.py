# SPDX-License-Identifier: Apache-2.0
"""A causal language model as a graph with a key-value cache: names, shapes and the export itself."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from bcq.frontends.cached_call import call_with_cache
from bcq.frontends.fused_attention import HEAD_STEP, FusedDecoder
from bcq.frontends.fused_rotary import fused_rotary
from bcq.frontends.last_logits import marked_head
from bcq.frontends.simplify import OPSET_VERSION

BATCH, SEQUENCE, PAST, TOTAL = (
    "batch_size",
    "sequence_length",
    "past_sequence_length",
    "total_sequence_length",
)
Cache = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class CacheShape:
    """The cache of a decoder: `layers` pairs of ``[batch, heads, past, head_size]``."""

    layers: int
    heads: int
    head_size: int

    @classmethod
    def of(cls, config: Any) -> CacheShape:
        """Reads it from a transformers configuration."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    def names(self, prefix: str) -> list[str]:
        """Tensor names in order: ``prefix.0.key``, ``prefix.0.value``, ``prefix.1.key`` ..."""
        return [f"{prefix}.{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]

    def empty(self, batch: int, past: int, dtype: torch.dtype = torch.float32) -> Cache:
        """A zero cache of that many past tokens."""
        zeros = torch.zeros((batch, self.heads, past, self.head_size), dtype=dtype)
        return [(zeros.clone(), zeros.clone()) for _ in range(self.layers)]


class CachedDecoder(nn.Module):
    """The model with the cache as plain tensors, in and out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past: Cache,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Logits, then key and value of each layer, past and present tokens together."""
        cache = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        result = call_with_cache(self.model, cache, input_ids, attention_mask, position_ids)
        present = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *present)


def export_decoder(model: Any, fused: bool = False) -> ir.Model:
    """Exports a causal language model.

    Args:
        model: transformers model; its parameters' values do not matter.
        fused: one GroupQueryAttention a layer, which onnxruntime alone has, in place of standard operators.
            Then the past may lie in buffers longer than it is, and padding stands on the right.

    Returns:
        A graph with inputs ``input_ids``, ``attention_mask``, ``position_ids`` (where the model takes them),
        ``past_key_values.N.key/value`` and outputs ``logits``, ``present.N.key/value``; the lengths of batch,
        sequence and past are dynamic, and a past of length 0 is a prompt. What the head reads is marked, for
        `bcq.frontends.last_logits.open_logits`.
    """
    cache = CacheShape.of(model.config)
    with_positions = takes_positions(model)
    batch, sequence, past = 2, 3, 5  # all different from each other and from 0 and 1, so that none is fixed
    arguments: dict[str, Any] = {
        "input_ids": torch.ones(batch, sequence, dtype=torch.int64),
        "attention_mask": torch.ones(batch, past + sequence, dtype=torch.int64),
        "past": cache.empty(batch, past, model.dtype),
    }
    one_layer = {0: BATCH, 2: PAST}
    shapes: dict[str, Any] = {
        "input_ids": {0: BATCH, 1: SEQUENCE},
        "attention_mask": {0: BATCH, 1: TOTAL},
        "past": [(one_layer, one_layer)] * cache.layers,
    }
    if with_positions:
        arguments["position_ids"] = torch.arange(past, past + sequence).repeat(batch, 1)
        shapes["position_ids"] = {0: BATCH, 1: SEQUENCE}
    inputs = ["input_ids", "attention_mask", *cache.names("past_key_values")]
    with marked_head(model), fused_rotary(model) if fused else contextlib.nullcontext():
        program = torch.onnx.export(
            FusedDecoder(model) if fused else CachedDecoder(model),
            kwargs=arguments,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[*inputs, "position_ids"] if with_positions else inputs,
            output_names=["logits", *cache.names("present")],
            opset_version=OPSET_VERSION,
            optimize=False,
            verbose=False,
        )
    assert program is not None  # only fallback exports return None
    _name_dimensions(program.model)
    return program.model


def why_not_fused(model: Any) -> str | None:
    """Why a model's attention cannot be one node a layer; None when it can."""
    size = CacheShape.of(model.config).head_size
    if size % HEAD_STEP:
        return f"its heads have {size} elements, expected a multiple of {HEAD_STEP}"
    return None


def takes_positions(model: Any) -> bool:
    """Whether the graph gets ``position_ids``; OPT counts positions from the mask itself."""
    return "position_ids" in inspect.signature(model.forward).parameters and model.config.model_type != "opt"


def _name_dimensions(model: ir.Model) -> None:
    """Puts ``position_ids`` third, and names the lengths of outputs."""
    inputs = {value.name: value for value in model.graph.inputs}
    first = ("input_ids", "attention_mask", "position_ids")
    ordered = [inputs.pop(name) for name in first if name in inputs] + list(inputs.values())
    model.graph.inputs.clear()
    model.graph.inputs.extend(ordered)
    name_present(model)


def name_present(model: ir.Model) -> None:
    """Names the length of every output of the cache, which the exporter calls ``past + sequence``."""
    for output in model.graph.outputs:
        if output.name != "logits" and output.shape is not None:
            output.shape = ir.Shape([BATCH, output.shape[1], TOTAL, output.shape[3]])
