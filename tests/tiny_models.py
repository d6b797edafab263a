# SPDX-License-Identifier: Apache-2.0
"""Seeded random models of every supported shape, small enough to export in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 100  # no multiple of 16: the last row tile is ragged
_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
# Weights of this spread make logits that depend on the whole prompt, so that greedy tokens vary.
_SPREAD = {"initializer_range": 0.2}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": (
        "OPT",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128,
         "max_position_embeddings": 64, "word_embed_proj_dim": 64},
    ),
    "llama": (  # grouped heads, and inputs that are no multiple of 32
        "Llama",
        {"hidden_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 136, "max_position_embeddings": 64},
    ),
}  # fmt: skip
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": (
        "Bert",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
         "max_position_embeddings": 64},
    ),
}  # fmt: skip
_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
    "llama": "LlamaForCausalLM",
    "bert": "BertModel",
}


def save(kind: str, folder: Path, **changes: Any) -> Path:
    """Saves a model of `kind` as a Hugging Face folder; `changes` go to its configuration."""
    family, sizes = {**DECODERS, **ENCODERS}[kind]
    config = getattr(transformers, f"{family}Config")(**{**_COMMON, **_spread(kind), **sizes, **changes})
    return save_model(getattr(transformers, _CLASSES[kind]), config, folder)


def save_model(
    model_class: Any, config: Any, folder: Path, adjust: Callable[[Any], None] = lambda model: None
) -> Path:
    """Saves a model with seeded random weights, biases and norms included; `adjust` may change them."""
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        adjust(model)
    model.save_pretrained(folder)
    return folder


def _spread(kind: str) -> dict[str, float]:
    return {"init_std": 0.2} if kind == "opt" else dict(_SPREAD)
