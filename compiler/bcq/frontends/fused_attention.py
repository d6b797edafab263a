# SPDX-License-Identifier: Apache-2.0
"""Every family's attention as one GroupQueryAttention node, through the hook that transformers offers.

Models of transformers call one attention function by name, after they rotated queries and keys and handed
the new keys and values to a cache. Here both are ours: the cache keeps the past apart and gives the new
tokens back, and the attention function writes one ``com.microsoft.GroupQueryAttention`` that takes past, new
tokens and lengths. So no family needs a pattern of its own (``docs/decisions/0018-attention.md``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from bcq.frontends.cached_call import call_with_cache

NAME = "bcq_fused"  # of the attention function, in transformers' registry
DOMAIN = "com.microsoft"
HEAD_STEP = 8  # onnxruntime's operator takes heads of multiples of this only
Layers = list[tuple[torch.Tensor, torch.Tensor]]


class PastApart(Cache):
    """A cache that leaves the joining of past and new tokens to the attention node.

    Args:
        past: keys and values of each layer, ``[batch, heads, P, size]``; P may exceed the past tokens.
        attention_mask: int64 ``[batch, total]``, 1 for tokens, 0 for padding, which stands on the right.
        new: how many tokens are new, S.
    """

    def __init__(self, past: Layers, attention_mask: torch.Tensor, new: int) -> None:
        super().__init__(layers=[])
        self.past = past
        self.present: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.total = attention_mask.shape[1]
        self.seen = self.total - new
        self.last = _last_places(attention_mask)
        self.total_length = torch.scalar_tensor(self.total, dtype=torch.int32)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new keys and values, as they came."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """How many tokens are past, by the mask: the buffer may be longer."""
        return self.seen


class FusedDecoder(nn.Module):
    """A model whose attention is one node a layer, with the cache as plain tensors, in and out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past: Layers,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Logits, then key and value of each layer, past and present tokens together."""
        cache = PastApart(past, attention_mask, input_ids.shape[1])
        with _attending(self.model, cache):
            result = call_with_cache(self.model, cache, input_ids, attention_mask, position_ids)
        return (
            result.logits,
            *(tensor for layer in sorted(cache.present) for tensor in cache.present[layer]),
        )


def _last_places(attention_mask: torch.Tensor) -> torch.Tensor:
    """Where the last token of each row stands, int32 ``[batch]``; -1 for a row that is padded on the left.

    The operator counts tokens from the start of the buffer. It refuses -1, where it would give wrong results.
    """
    counts = attention_mask.sum(dim=1) * attention_mask[:, 0]
    return (counts - 1).to(torch.int32)


@contextlib.contextmanager
def _attending(model: nn.Module, cache: PastApart) -> Iterator[None]:
    """Within the block, the model's attention reads and fills `cache`."""

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        layer: Any = module.layer_idx
        return _attention(cache, layer, query, key, value, **options), None

    config: Any = model.config
    before = config._attn_implementation
    AttentionInterface.register(NAME, attend)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
    cache: PastApart,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """One node: query ``[B, heads, S, size]`` to ``[B, S, heads, size]``, as transformers asks."""
    batch, heads, new, size = query.shape
    groups = key.shape[1]
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": groups,
        "scale": float(size**-0.5 if scaling is None else scaling),
    }
    if sliding_window is not None:
        attributes["local_window_size"] = sliding_window
    if softcap is not None:
        attributes["softcap"] = float(softcap)
    present = (batch, groups, cache.total, size)
    result, keys, values = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::GroupQueryAttention",
        [*map(joined_heads, (query, key, value)), *cache.past[layer], cache.last, cache.total_length],
        attributes,
        dtypes=[query.dtype] * 3,
        shapes=[(batch, new, heads * size), present, present],
        version=1,
    )
    cache.present[layer] = (keys, values)
    return result.view(batch, new, heads, size)


def joined_heads(states: torch.Tensor) -> torch.Tensor:
    """``[B, heads, S, size]`` to ``[B, S, heads * size]``."""
    batch, heads, length, size = states.shape
    return states.transpose(1, 2).reshape(batch, length, heads * size)
