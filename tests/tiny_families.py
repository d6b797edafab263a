# SPDX-License-Identifier: Apache-2.0
"""One small seeded model of each family that generates, with its kinds of heads, windows, caps and norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from tiny_models import VOCABULARY, save_model

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
_WINDOW = 12  # shorter than any test's text, so that a window that is off by one shows
_MIXED = ["sliding_attention", "full_attention"]
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_inner": 128}),
    "gpt2-untied": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True},
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {"ffn_dim": 128, "word_embed_proj_dim": 64, "init_std": 0.2},
    ),
    "opt-350m": (  # norms behind, embeddings narrower than the model
        "OPTConfig",
        "OPTForCausalLM",
        {"ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False, "init_std": 0.2},
    ),
    "llama-2": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 4}),
    "llama-3": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"rope_parameters": _LLAMA3, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": _WINDOW}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 24, "tie_word_embeddings": True}),
    "phi": ("PhiConfig", "PhiForCausalLM", {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": _WINDOW}),
    "phi4-mini": (
        "Phi3Config",
        "Phi3ForCausalLM",
        {"head_dim": 16, "rope_parameters": _PARTIAL, "tie_word_embeddings": True},
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"head_dim": 24, "sliding_window": _WINDOW, "layer_types": _MIXED, "query_pre_attn_scalar": 20,
         "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {"head_dim": 24, "sliding_window": _WINDOW, "layer_types": [*_MIXED, "sliding_attention"],
         "num_hidden_layers": 3, "query_pre_attn_scalar": 20},
    ),
    "smollm3": (
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
    ),
}  # fmt: skip
# Inputs and heads that are no multiple of 32. At twice their usual spread layers outweigh the embeddings, so
# that tokens vary.
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    "d_model": 72, "d_kv": 24, "d_ff": 136, "num_layers": 2, "num_heads": 4, "initializer_factor": 2.0,
}  # fmt: skip
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
ENCODER_DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5Config", "T5ForConditionalGeneration", {}),  # a tied head behind a scale
    "t5-1.1": ("T5Config", "T5ForConditionalGeneration", {**_GATED, "num_decoder_layers": 1}),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", _GATED),
    "umt5": ("UMT5Config", "UMT5ForConditionalGeneration", _GATED),  # each layer has distances of its own
}


def save(family: str, folder: Path, **changes: Any) -> Path:
    """Saves the model of a family as a Hugging Face folder; `changes` go to its configuration."""
    config_class, model_class, sizes = {**FAMILIES, **ENCODER_DECODERS}[family]
    common = _T5 if family in ENCODER_DECODERS else {**_COMMON, **_groups(family)}
    config = getattr(transformers, config_class)(**{**common, **sizes, **changes})
    adjust = _soften if family in ENCODER_DECODERS else lambda model: None
    return save_model(getattr(transformers, model_class), config, folder, adjust)


def give_own_head(folder: Path) -> Path:
    """Adds a head of its own to a saved model that ties it, as files of T5 1.1 have; returns the folder."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["shared.weight"].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _soften(model: Any) -> None:
    """Makes scores of about 1: T5 does not scale them, and steep ones magnify errors beyond any tolerance."""
    for name, parameter in model.named_parameters():
        if name.endswith("Attention.q.weight"):
            parameter.mul_(0.25)


def _groups(family: str) -> dict[str, int]:
    """Key-value heads, for the families that know them."""
    return {} if family.startswith(("gpt2", "opt", "phi-")) else {"num_key_value_heads": 2}
