# SPDX-License-Identifier: Apache-2.0
"""Which Hugging Face architectures are exported, decided from ``config.json`` alone, before any work."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from bcq.errors import InputError, UnsupportedError

DECODERS = (
    "GPT2LMHeadModel",
    "OPTForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
)
ENCODER_DECODERS = (
    "T5ForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "UMT5ForConditionalGeneration",
)
ENCODER_FAMILIES = ("Bert", "Roberta", "DistilBert", "Electra")
ENCODER_HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)


@dataclass(frozen=True)
class Architecture:
    """One supported architecture.

    Attributes:
        class_name: the transformers class that holds the weights, for example ``"OPTForCausalLM"``.
        kind: ``"decoder"`` (exported with a key-value cache), ``"encoder"``, or ``"encoder-decoder"`` (a
            graph of each).
    """

    class_name: str
    kind: str


def architecture_of(config: dict[str, Any]) -> Architecture:
    """Names the architecture of a model folder.

    Args:
        config: the contents of ``config.json``.

    Raises:
        InputError: E102 when the config names no architecture.
        UnsupportedError: E401 when it names one that is not exported; says which come near.
    """
    name = class_name_of(config)
    if name in DECODERS:
        return Architecture(name, "decoder")
    if name in ENCODER_DECODERS:
        return Architecture(name, "encoder-decoder")
    if name in _encoders():
        return Architecture(name, "encoder")
    raise UnsupportedError("E401", f"architecture {name} is not supported{_why(name, config)}.", _hint(name))


def class_name_of(config: dict[str, Any]) -> str:
    """The transformers class that a config names.

    Raises:
        InputError: E102 when it names none.
    """
    declared = config.get("architectures")
    if not (isinstance(declared, list) and declared and isinstance(declared[0], str)):
        raise InputError(
            "E102",
            f"config.json: architectures: got {declared!r}, expected a list with one class name.",
            "Save the model with save_pretrained, which writes it.",
        )
    return declared[0]


def _encoders() -> tuple[str, ...]:
    return tuple(family + head for family in ENCODER_FAMILIES for head in ENCODER_HEADS)


def _why(name: str, config: dict[str, Any]) -> str:
    """What kind of model it is, when the config tells."""
    if config.get("is_encoder_decoder"):
        return " (an encoder-decoder model)"
    if "vision_config" in config or "image_size" in config or "Vision" in name or "ViT" in name:
        return " (a vision model)"
    if "audio_config" in config or "Speech" in name or "Audio" in name:
        return " (an audio model)"
    if any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
        return " (a mixture of experts)"
    if "state_size" in config or "ssm_cfg" in config or "mamba_d_state" in config:
        return " (a state-space model)"
    if name.endswith("Model") and f"{name.removesuffix('Model')}ForCausalLM" in DECODERS:
        return " (a decoder without its head)"
    return ""


def _hint(name: str) -> str:
    known = (*DECODERS, *ENCODER_DECODERS, *_encoders())
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    closest = f"Closest: {near[0]}. " if near else ""
    return (
        f"{closest}Decoders: {', '.join(DECODERS)}; encoders: {', '.join(ENCODER_FAMILIES)}; "
        f"encoder-decoders: {', '.join(ENCODER_DECODERS)}. "
        "Any other model: export it to ONNX first, then `bcq export model.onnx`."
    )
