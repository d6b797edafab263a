# SPDX-License-Identifier: Apache-2.0
"""What onnxruntime-genai needs beside the model: its configuration, and the operator library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG_FILE = "genai_config.json"
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


def write_genai(
    folder: Path,
    library: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    with_positions: bool,
    share_buffer: bool = False,
) -> None:
    """Makes a folder loadable by ``onnxruntime_genai.Model``.

    onnxruntime-genai loads an operator library only when it lies inside the model folder: it is copied there.

    Args:
        folder: the export folder.
        library: the operator library.
        config: contents of ``config.json`` with every default spelt out.
        generation: contents of ``generation_config.json``, or nothing.
        with_positions: whether the graph takes ``position_ids``.
        share_buffer: whether past and present may be one buffer, which fused attention allows.
    """
    shutil.copyfile(library, folder / library.name)
    document = genai_config(config, generation, library.name, with_positions, share_buffer)
    (folder / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def genai_config(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    library_name: str,
    with_positions: bool,
    share_buffer: bool = False,
) -> dict[str, Any]:
    """The contents of ``genai_config.json``: the generic type "decoder", greedy search.

    Args:
        config: contents of ``config.json`` with every default spelt out.
        generation: contents of ``generation_config.json``, or nothing.
        library_name: file name of the operator library.
        with_positions: whether the graph takes ``position_ids``.
        share_buffer: whether past and present may be one buffer.
    """
    context = context_length(config) or 2048
    tokens = special_tokens(config, generation)
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config["vocab_size"],
            "context_length": context,
            **tokens,
            "decoder": _decoder(config, library_name, with_positions),
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": share_buffer,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def special_tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Begin, end and padding ids; ``generation_config.json`` wins, padding falls back to the end id.

    Ids outside the vocabulary, which default configurations carry, are left out: onnxruntime-genai refuses
    them, and works without.
    """

    def find(name: str) -> list[int]:
        found = config.get(name) if generation.get(name) is None else generation[name]
        ids = found if isinstance(found, list) else [found]
        return [token for token in ids if isinstance(token, int) and 0 <= token < config["vocab_size"]]

    begin, end = find("bos_token_id"), find("eos_token_id")
    padding = find("pad_token_id") or end
    tokens: dict[str, Any] = {}
    if begin:
        tokens["bos_token_id"] = begin[0]
    if end:
        tokens["eos_token_id"] = end if len(end) > 1 else end[0]
    if padding:
        tokens["pad_token_id"] = padding[0]
    return tokens


def context_length(config: Mapping[str, Any]) -> int | None:
    """How many positions a model has, or None when its config does not say."""
    return next((int(config[key]) for key in _CONTEXT_KEYS if config.get(key)), None)


def _decoder(config: Mapping[str, Any], library_name: str, with_positions: bool) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "position_ids": "position_ids",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if not with_positions:
        del inputs["position_ids"]
    return {
        "filename": "model.onnx",
        "session_options": {"custom_ops_library": library_name, "provider_options": []},
        "hidden_size": config["hidden_size"],
        "head_size": config.get("head_dim") or config["hidden_size"] // heads,
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "num_hidden_layers": config["num_hidden_layers"],
        "inputs": inputs,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
