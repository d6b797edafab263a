# SPDX-License-Identifier: Apache-2.0
"""A model run block by block computes what the model computes, for every family; others are refused."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="calibrating needs the packages for compiling")

import torch
import transformers

from bcq.calibration.blocks import Blocks
from bcq.errors import UnsupportedError

WORDS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 48, "max_position_embeddings": 32, **WORDS,
}  # fmt: skip
BERT = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 32, **WORDS}
OPT = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 48,
    "word_embed_proj_dim": 16, "max_position_embeddings": 32, **WORDS,
}  # fmt: skip
DISTIL = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 32, **WORDS}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("GPT2LMHeadModel", GPT2),
    ("OPTForCausalLM", OPT),
    ("LlamaForCausalLM", LLAMA),
    ("MistralForCausalLM", LLAMA | {"sliding_window": 4}),
    ("Qwen3ForCausalLM", LLAMA | {"head_dim": 16}),
    ("PhiForCausalLM", LLAMA),
    ("Phi3ForCausalLM", LLAMA),
    ("GemmaForCausalLM", LLAMA | {"head_dim": 16}),
    ("Gemma2ForCausalLM", LLAMA | {"head_dim": 16, "sliding_window": 4}),
    ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 3, "n_head": 2, **WORDS}),
    ("BertForMaskedLM", BERT),
    ("RobertaForMaskedLM", BERT),
    ("ElectraForMaskedLM", BERT | {"embedding_size": 16}),
    ("DistilBertForMaskedLM", DISTIL),
]


def built(name: str, sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("name", "sizes"), FAMILIES)
def test_the_head_reads_the_same_as_in_the_model_itself(name: str, sizes: dict[str, Any]) -> None:
    model = built(name, sizes)
    ids = torch.arange(3, 39).reshape(3, 12)
    seen: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        model(input_ids=ids)
    blocks = Blocks(model)
    states, calls = blocks.front(ids)
    for number in range(3):
        states = blocks.run(number, states, calls[number])
    blocks.tail(ids, states, lambda: None)
    torch.testing.assert_close(seen[-1], seen[0], rtol=0, atol=0)  # the same operations on the same numbers
    with torch.inference_mode():
        model(input_ids=ids)  # the blocks are themselves again
    torch.testing.assert_close(seen[-1], seen[0], rtol=0, atol=0)


def test_blocks_that_hand_on_more_than_hidden_states_are_refused() -> None:
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 48, **WORDS}
    with pytest.raises(UnsupportedError, match="hand on more than hidden states") as caught:
        Blocks(built("T5EncoderModel", sizes))
    assert caught.value.code == "E401"


def test_a_model_that_wants_more_than_text_is_refused() -> None:
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 48, **WORDS}
    with pytest.raises(UnsupportedError, match="does not run on token ids alone"):
        Blocks(built("T5ForConditionalGeneration", sizes))


def test_a_block_that_runs_twice_is_refused() -> None:
    model = built("AlbertForMaskedLM", BERT | {"embedding_size": 16, "num_hidden_groups": 1})
    with pytest.raises(UnsupportedError, match="runs its 1 blocks in the order"):
        Blocks(model)


def test_a_model_without_blocks_is_refused() -> None:
    model = built("GPT2LMHeadModel", GPT2)
    model.transformer.h = torch.nn.ModuleList()
    with pytest.raises(UnsupportedError, match="no list of blocks"):
        Blocks(model)
