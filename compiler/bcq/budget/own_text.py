# SPDX-License-Identifier: Apache-2.0
"""Text that a language model writes itself, for measurements where no text is at hand.

Source: Liu et al. 2023, "LLM-QAT" (arXiv 2305.17888), section 3.1: sampled tokens keep the distribution that
the model has learnt, whatever it was trained on.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.inference_mode()
def own_text(model: Any, windows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Samples from a causal model.

    Args:
        model: a transformers model with a key-value cache.
        windows: how many windows; each begins with a token of any kind.
        width: tokens of each.
        seed: of all choices.

    Returns:
        int64 ``[windows, width]``.
    """
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(int(model.config.get_text_config().vocab_size), (windows, 1), generator=random)
    past: Any = None
    while ids.shape[1] < width:
        result = model(input_ids=ids if past is None else ids[:, -1:], past_key_values=past, use_cache=True)
        past = result.past_key_values
        likely = torch.softmax(result.logits[:, -1].float(), -1)
        ids = torch.cat([ids, torch.multinomial(likely, 1, generator=random)], 1)
    return ids
