# SPDX-License-Identifier: Apache-2.0
"""Models of well-known shapes with seeded random weights, so that a bench needs no download."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

CONTEXT = 1024  # positions, as many as GPT-2 has
SEED = 0
_CLASSES = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Shape:
    """A decoder's architecture.

    Attributes:
        family: ``GPT2`` or ``Llama``.
        sizes: arguments of the configuration class.
        stand_in: a Llama of as many weights, for peers that do not know this family; empty where they do.
    """

    family: str
    sizes: dict[str, Any]
    stand_in: str = ""


def _gpt2(width: int, layers: int, stand_in: str, vocabulary: int = 50257) -> Shape:
    sizes = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": CONTEXT}
    return Shape("GPT2", {**sizes, "vocab_size": vocabulary}, stand_in)


def _llama(width: int, inner: int, layers: int, heads: tuple[int, int], vocabulary: int = 50257) -> Shape:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": 64}
    more = {"vocab_size": vocabulary, "tie_word_embeddings": True, "max_position_embeddings": CONTEXT}
    return Shape("Llama", {**sizes, **heads_of, **more})


SHAPES: dict[str, Shape] = {
    "gpt2-tiny": _gpt2(256, 2, "gpt2-tiny-llama", 512),
    "gpt2-small": _gpt2(768, 12, "gpt2-small-llama"),
    "gpt2-medium": _gpt2(1024, 24, "gpt2-medium-llama"),
    "llama-tiny": _llama(256, 768, 2, (4, 2), 512),
    "llama-135m": _llama(576, 1536, 30, (9, 3), 49152),
    "llama-1b": _llama(2048, 8192, 16, (32, 8), 128256),  # the shape of Llama 3.2 1B
    # Width, depth, heads and vocabulary of GPT-2, and gated layers of as many weights: 8 d^2 in a block.
    "gpt2-tiny-llama": _llama(256, 768, 2, (4, 4), 512),
    "gpt2-small-llama": _llama(768, 2048, 12, (12, 12)),
    "gpt2-medium-llama": _llama(1024, 2688, 24, (16, 16)),
}


def random_model(name: str, folder: Path, vocabulary: int | None = None) -> Path:
    """Writes a model folder with seeded random float16 weights and the tokenizer of the demo model.

    Args:
        name: a key of `SHAPES`.
        folder: where it goes.
        vocabulary: tokens instead of as many as the shape has: an embedding of fewer rows.
    """
    import torch
    import transformers

    shape = SHAPES[name]
    sizes = shape.sizes if vocabulary is None else {**shape.sizes, "vocab_size": vocabulary}
    torch.manual_seed(SEED)
    config = getattr(transformers, f"{shape.family}Config")(**sizes, bos_token_id=0, eos_token_id=0)
    getattr(transformers, _CLASSES[shape.family])(config).half().save_pretrained(folder)
    for file in _TOKENIZER:
        shutil.copyfile(str(files("bcq") / "demo_model" / file), folder / file)
    return folder
