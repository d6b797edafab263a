# SPDX-License-Identifier: Apache-2.0
"""Matrices are found from the model's class: kinds, orientation, ties, and names with or without prefix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bcq.errors import BcqError
from bcq.files.checkpoint import SINGLE, Checkpoint
from bcq.matrices.find import MatrixInfo, find_matrices

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    return saved(folder, transformers.GPT2LMHeadModel(config))


def found(folder: Path) -> dict[str, MatrixInfo]:
    return {info.name: info for info in find_matrices(Checkpoint.open(folder))}


def rename_tensors(folder: Path, old: str, new: str) -> None:
    tensors = load_file(folder / SINGLE)
    save_file({name.replace(old, new, 1): value for name, value in tensors.items()}, folder / SINGLE)


def test_gpt2_has_transposed_conv1d_embeddings_and_a_tied_head(tmp_path: Path) -> None:
    matrices = found(gpt2(tmp_path))
    attention = matrices["transformer.h.0.attn.c_attn.weight"]
    assert (attention.kind, attention.rows, attention.inputs, attention.transposed) == (
        "conv1d",
        96,
        32,
        True,
    )
    words = matrices["transformer.wte.weight"]
    assert (words.kind, words.rows, words.inputs, words.transposed) == ("embedding", 40, 32, False)
    head = matrices["lm_head.weight"]
    assert (head.kind, head.tied_to, head.stored) == ("tied", words.name, words.stored)
    assert len(matrices) == 4 + 3


def test_a_llama_without_ties_has_a_linear_head(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**TINY, num_key_value_heads=1, tie_word_embeddings=False)
    matrices = found(saved(tmp_path, transformers.LlamaForCausalLM(config)))
    assert matrices["lm_head.weight"].kind == "linear"
    key = matrices["model.layers.0.self_attn.k_proj.weight"]
    assert (key.kind, key.rows, key.inputs, key.transposed) == ("linear", 16, 32, False)


def test_an_encoder_is_found_by_its_architecture(tmp_path: Path) -> None:
    matrices = found(saved(tmp_path, transformers.BertModel(transformers.BertConfig(**TINY))))
    assert matrices["embeddings.word_embeddings.weight"].kind == "embedding"
    assert matrices["encoder.layer.0.output.dense.weight"].inputs == 48
    assert all(not info.tied_to for info in matrices.values())


def test_a_checkpoint_without_the_prefix_is_mapped(tmp_path: Path) -> None:
    rename_tensors(gpt2(tmp_path), "transformer.", "")
    words = found(tmp_path)["transformer.wte.weight"]
    assert words.stored == "wte.weight"


def test_a_checkpoint_with_a_prefix_too_many_is_mapped(tmp_path: Path) -> None:
    saved(tmp_path, transformers.BertModel(transformers.BertConfig(**TINY)))
    tensors = load_file(tmp_path / SINGLE)
    save_file({f"bert.{name}": value for name, value in tensors.items()}, tmp_path / SINGLE)
    words = "embeddings.word_embeddings.weight"
    assert found(tmp_path)[words].stored == f"bert.{words}"


def test_an_encoder_saved_without_its_pooler_is_whole(tmp_path: Path) -> None:
    config = transformers.BertConfig(**TINY)
    matrices = found(saved(tmp_path, transformers.BertModel(config, add_pooling_layer=False)))
    assert not any("pooler" in name for name in matrices)


def test_experts_in_three_dimensions_are_left_with_a_reason(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**TINY, num_key_value_heads=1, num_local_experts=2)
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(tmp_path)
    save_file({name: torch.zeros(value.shape) for name, value in model.named_parameters()}, tmp_path / SINGLE)
    experts = [info for info in found(tmp_path).values() if ".experts." in info.name]
    assert experts
    assert all(info.kind == "other" and "3 dimensions" in info.reason for info in experts)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    rename_tensors(gpt2(tmp_path), "h.0.mlp.c_fc.weight", "lost")
    with pytest.raises(BcqError, match=r"no tensor 'transformer\.h\.0\.mlp\.c_fc\.weight'") as caught:
        found(tmp_path)
    assert caught.value.code == "E107"


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    gpt2(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    save_file({**tensors, "transformer.wpe.weight": torch.zeros(3, 32)}, tmp_path / SINGLE)
    with pytest.raises(
        BcqError, match=r"wpe\.weight: got the shape \[3, 32\], expected \[16, 32\]"
    ) as caught:
        found(tmp_path)
    assert caught.value.code == "E103"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_type": "unheard"}, "E401"),
        ({"model_type": 3}, "E102"),
        ({"architectures": ["UnheardModel"]}, "E401"),
        ({"n_embd": "wide"}, "E102"),
    ],
)
def test_a_config_that_names_no_known_model_is_refused(
    tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    gpt2(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BcqError) as caught:
        found(tmp_path)
    assert caught.value.code == code
