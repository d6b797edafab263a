# SPDX-License-Identifier: Apache-2.0
"""The configuration for onnxruntime-genai; that it runs is shown in test_chain.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bcq.files.genai import context_length, genai_config, special_tokens, write_genai

CONFIG: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "eos_token_id": 7,
}


def test_the_generic_decoder_is_described_with_its_cache() -> None:
    model = genai_config(CONFIG, {}, "libbcq_ops.so", with_positions=True)["model"]
    assert model["type"] == "decoder"
    assert model["context_length"] == 32
    decoder = model["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (16, 2, 2)
    assert decoder["inputs"]["past_key_names"] == "past_key_values.%d.key"
    assert decoder["outputs"]["present_value_names"] == "present.%d.value"
    assert decoder["session_options"]["custom_ops_library"] == "libbcq_ops.so"


def test_position_ids_are_named_only_where_the_graph_takes_them() -> None:
    for taken in (True, False):
        inputs = genai_config(CONFIG, {}, "l.so", with_positions=taken)["model"]["decoder"]["inputs"]
        assert ("position_ids" in inputs) == taken


def test_a_head_size_of_its_own_wins_and_plain_heads_are_key_value_heads_too() -> None:
    config = {**CONFIG, "head_dim": 24, "num_key_value_heads": None}
    decoder = genai_config(config, {}, "l.so", with_positions=True)["model"]["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (24, 4)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 7}, {}, {"eos_token_id": 7, "pad_token_id": 7}),
        ({"eos_token_id": 7}, {"eos_token_id": [3, 4]}, {"eos_token_id": [3, 4], "pad_token_id": 3}),
        (
            {"bos_token_id": 1, "eos_token_id": 50256, "pad_token_id": 0},
            {},
            {"bos_token_id": 1, "pad_token_id": 0},
        ),
        ({"eos_token_id": None}, {}, {}),
    ],
)
def test_special_tokens_come_from_generation_config_first_and_lie_in_the_vocabulary(
    config: dict[str, Any], generation: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert special_tokens({"vocab_size": 100, **config}, generation) == expected


def test_the_context_length_is_found_under_every_familys_name() -> None:
    assert context_length({"n_positions": 12}) == 12
    assert context_length({"max_position_embeddings": 34}) == 34
    assert context_length({}) is None


def test_the_library_is_copied_beside_the_configuration(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"code")
    folder = tmp_path / "out"
    folder.mkdir()
    write_genai(folder, library, CONFIG, {}, with_positions=True)
    assert (folder / "lib.so").read_bytes() == b"code"
    assert json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"] == 100
