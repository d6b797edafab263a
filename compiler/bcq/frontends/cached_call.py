# SPDX-License-Identifier: Apache-2.0
"""A call of a transformers decoder with a cache of any kind, as both ways of exporting attention make it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache


def call_with_cache(
    model: nn.Module,
    cache: Cache,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor | None,
) -> Any:
    """What the model returns.

    Args:
        model: a causal model.
        cache: holds the past tokens and takes the new ones.
        input_ids: the new tokens ``[batch, new]``.
        attention_mask: ``[batch, past + new]``.
        position_ids: ``[batch, new]``, or None for a model that takes none.
    """
    positions = {} if position_ids is None else {"position_ids": position_ids}
    return model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        past_key_values=cache,
        use_cache=True,
        **positions,
    )
