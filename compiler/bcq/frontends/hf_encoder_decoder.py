# SPDX-License-Identifier: Apache-2.0
"""An encoder-decoder such as T5 as two graphs: one reads the source, the other writes the answer.

The encoder's graph ends with the keys and values that the decoder's layers need of the source: their
projections run once for each source and lie in that graph alone, so a step of the decoder does not read them.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from bcq.frontends.hf_decoder import BATCH, PAST, SEQUENCE, TOTAL, Cache, CacheShape, name_present
from bcq.frontends.simplify import OPSET_VERSION

SOURCE = "source_length"
MEMORY = "encoder"  # encoder.N.key and encoder.N.value: outputs of one graph, inputs of the other
SOURCE_MASK = "encoder_attention_mask"


class SourceEncoder(nn.Module):
    """The encoder, and of each layer of the decoder what it makes of the encoder's result."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys and values of the source, layer by layer, each ``[batch, heads, source, head_size]``."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.model(  # a step of the decoder fills the cache; nothing else of it is kept in the graph
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=input_ids[:, :1],
            past_key_values=cache,
            use_cache=True,
        )
        return _tensors(cache.cross_attention_cache)


class SourceDecoder(nn.Module):
    """The decoder with its cache, and the keys and values of the source, as plain tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        source_mask: torch.Tensor,
        memory: Cache,
        past: Cache,
    ) -> tuple[torch.Tensor, ...]:
        """Logits, then key and value of each layer, past and present tokens together."""
        cache = EncoderDecoderCache(_filled(past), _filled(memory))
        cache.is_updated = dict.fromkeys(range(len(memory)), True)
        hidden = source_mask[:, :, None].to(memory[0][0].dtype)  # its values are not read: the cache is full
        result: Any = self.model(
            attention_mask=source_mask,
            decoder_input_ids=input_ids,
            decoder_attention_mask=attention_mask,
            encoder_outputs=(hidden,),
            past_key_values=cache,
            use_cache=True,
        )
        return (result.logits, *_tensors(cache.self_attention_cache))


def _filled(pairs: Cache) -> DynamicCache:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(pairs):
        cache.update(key, value, layer)
    return cache


def _tensors(cache: Any) -> tuple[torch.Tensor, ...]:
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def cache_shape(config: Any) -> CacheShape:
    """Layers, heads and their size of the decoder, from a transformers configuration."""
    return CacheShape(config.num_decoder_layers, config.num_heads, config.d_kv)


def export_encoder(model: Any) -> ir.Model:
    """The graph that reads a source.

    Args:
        model: transformers model; its parameters' values do not matter.

    Returns:
        A graph with inputs ``input_ids`` and ``attention_mask`` ``[batch, source]`` and, for each layer of
        the decoder, outputs ``encoder.N.key`` and ``encoder.N.value`` ``[batch, heads, source, head_size]``.
    """
    row = {0: BATCH, 1: SOURCE}
    names = ("input_ids", "attention_mask")
    return _exported(
        SourceEncoder(model),
        {name: torch.ones(2, 5, dtype=torch.int64) for name in names},  # one tensor twice would be one input
        dict.fromkeys(names, row),
        cache_shape(model.config).names(MEMORY),
    )


def export_decoder(model: Any) -> ir.Model:
    """The graph that writes an answer.

    Args:
        model: as in `export_encoder`.

    Returns:
        A graph with inputs ``input_ids``, ``attention_mask``, ``encoder_attention_mask`` ``[batch, source]``,
        ``encoder.N.key/value``, ``past_key_values.N.key/value``, and outputs ``logits``,
        ``present.N.key/value``; the lengths of batch, sequence, source and past are dynamic.
    """
    shape = cache_shape(model.config)
    batch, sequence, past, source = 2, 3, 5, 7  # all different, and neither 0 nor 1, so that none is fixed
    layer, memory = {0: BATCH, 2: PAST}, {0: BATCH, 2: SOURCE}
    graph = _exported(
        SourceDecoder(model),
        {
            "input_ids": torch.ones(batch, sequence, dtype=torch.int64),
            "attention_mask": torch.ones(batch, past + sequence, dtype=torch.int64),
            "source_mask": torch.ones(batch, source, dtype=torch.int64),
            "memory": shape.empty(batch, source, model.dtype),
            "past": shape.empty(batch, past, model.dtype),
        },
        {
            "input_ids": {0: BATCH, 1: SEQUENCE},
            "attention_mask": {0: BATCH, 1: TOTAL},
            "source_mask": {0: BATCH, 1: SOURCE},
            "memory": [(memory, memory)] * shape.layers,
            "past": [(layer, layer)] * shape.layers,
        },
        ["logits", *shape.names("present")],
        ["input_ids", "attention_mask", SOURCE_MASK, *shape.names(MEMORY), *shape.names("past_key_values")],
    )
    name_present(graph)
    return graph


def _exported(
    module: nn.Module,
    arguments: dict[str, Any],
    shapes: dict[str, Any],
    outputs: list[str],
    inputs: list[str] | None = None,
) -> ir.Model:
    program = torch.onnx.export(
        module,
        kwargs=arguments,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=inputs or list(arguments),
        output_names=outputs,
        opset_version=OPSET_VERSION,
        optimize=False,
        verbose=False,
    )
    assert program is not None  # only fallback exports return None
    return program.model
