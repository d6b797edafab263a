# SPDX-License-Identifier: Apache-2.0
"""Model folders as graphs: which are taken, how names are found, and that no weight takes memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the front end exports with torch")
pytest.importorskip("transformers", reason="the front end builds transformers' classes")

import onnx_ir as ir
import transformers

import bcq
from bcq.errors import InputError, UnsupportedError
from bcq.frontends import hf
from bcq.frontends.architectures import DECODERS, architecture_of
from bcq.frontends.hf_decoder import CacheShape
from bcq.frontends.hf_encoder import outputs_of, takes_token_types
from bcq.frontends.names import stored_names
from bcq.frontends.simplify import simplify
from bcq.frontends.weightless import weightless_model
from graphs import Feeds, model_of, normal, run_without_library
from tiny_models import save_model


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_taken_by_their_class(name: str) -> None:
    assert architecture_of({"architectures": [name]}).kind == "decoder"


@pytest.mark.parametrize("name", ["BertModel", "RobertaForSequenceClassification", "DistilBertForMaskedLM"])
def test_encoders_are_taken_by_their_class(name: str) -> None:
    assert architecture_of({"architectures": [name]}).kind == "encoder"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}, "encoder-decoder"),
        ({"architectures": ["ViTForImageClassification"], "image_size": 224}, "vision"),
        (
            {"architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True},
            "encoder-decoder",
        ),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, "mixture of experts"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128}, "mixture of experts"),
        ({"architectures": ["MambaForCausalLM"], "state_size": 16}, "state-space"),
        ({"architectures": ["GPT2Model"]}, "GPT2Model"),
        ({"architectures": ["LlamaModel"]}, "without its head"),
        ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel"),
    ],
)
def test_other_architectures_are_refused_by_name(config: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedError, match=why) as caught:
        architecture_of(config)
    assert caught.value.code == "E401"
    assert "export it to ONNX first" in caught.value.hint


@pytest.mark.parametrize("declared", [None, [], "GPT2LMHeadModel", [7]])
def test_a_config_without_an_architecture_is_refused(declared: Any) -> None:
    with pytest.raises(InputError, match="architectures"):
        architecture_of({"architectures": declared})


def test_a_model_of_any_size_is_built_without_memory(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(architectures=["LlamaForCausalLM"])  # 6.7 billion parameters
    config.save_pretrained(tmp_path)
    model, architecture = weightless_model(tmp_path)
    assert architecture.kind == "decoder"
    parameters = list(model.parameters())
    assert sum(parameter.numel() for parameter in parameters) > 6e9
    assert sum(parameter.untyped_storage().nbytes() for parameter in parameters) == 4 * len(parameters)


def test_tied_parameters_stay_one_and_buffers_are_real(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"], hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, vocab_size=50, tie_word_embeddings=True,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    model, _ = weightless_model(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.rotary_emb.inv_freq.max() == 1.0


def small_gpt2(**changes: Any) -> Any:
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 50}
    tokens = {"bos_token_id": 0, "eos_token_id": 1}
    return transformers.GPT2Config(**{**sizes, **tokens, **changes})


def test_names_are_found_with_and_without_the_base_models_prefix(tmp_path: Path) -> None:
    model = transformers.GPT2LMHeadModel(small_gpt2())
    own = {name for name, _ in model.named_parameters()}
    short = {name.removeprefix("transformer.") for name in own}
    assert stored_names(model, own, tmp_path)["lm_head.weight"] == "transformer.wte.weight"
    assert stored_names(model, short, tmp_path)["transformer.wpe.weight"] == "wpe.weight"
    assert stored_names(model, short, tmp_path)["lm_head.weight"] == "wte.weight"


def test_a_parameter_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    model = transformers.GPT2LMHeadModel(small_gpt2())
    with pytest.raises(InputError, match=r"transformer\.wpe\.weight") as caught:
        stored_names(model, {n for n, _ in model.named_parameters()} - {"transformer.wpe.weight"}, tmp_path)
    assert caught.value.code == "E107"


def test_the_cache_has_the_shape_that_the_config_says() -> None:
    assert CacheShape.of(small_gpt2(n_layer=3)) == CacheShape(layers=3, heads=4, head_size=16)
    grouped = transformers.Qwen3Config(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=24
    )
    assert CacheShape.of(grouped).heads == 2
    assert CacheShape.of(grouped).head_size == 24
    names = CacheShape(layers=2, heads=1, head_size=1).names("present")
    assert names == ["present.0.key", "present.0.value", "present.1.key", "present.1.value"]


def test_an_encoders_outputs_follow_its_head() -> None:
    assert outputs_of("BertModel") == ("last_hidden_state",)
    assert outputs_of("BertForMaskedLM") == ("logits",)
    assert outputs_of("RobertaForQuestionAnswering") == ("start_logits", "end_logits")


def test_segments_are_an_input_only_where_there_are_two_kinds() -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert takes_token_types(transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=50)))
    one = transformers.RobertaConfig(**sizes, vocab_size=50, type_vocab_size=1)
    assert not takes_token_types(transformers.RobertaModel(one))


def test_constants_fold_but_parameters_do_not() -> None:
    model = model_of(
        """graph (float[2, 4] a) => (float[2, 3] y) {
            t = Transpose <perm = [1, 0]> (weight)
            u = Transpose <perm = [1, 0]> (table)
            s = Add (t, u)
            y = MatMul (a, s)
        }""",
        weight=normal(3, 4), table=normal(3, 4),
    )  # fmt: skip
    simplify(model, {"weight"})
    assert [node.op_type for node in model.graph] == ["Transpose", "Add", "MatMul"]
    assert "weight" in model.graph.initializers


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[hf.Skeleton, Path]:
    folder = tmp_path_factory.mktemp("gpt2")
    save_model(transformers.GPT2LMHeadModel, small_gpt2(), folder / "model")
    base = bcq.quantize(folder / "model", folder / "base", bits=2, group_size=32, overrides=("wpe*=keep",))
    return hf.skeleton(base), folder


def test_a_decoders_graph_has_named_inputs_outputs_and_dimensions(graph: tuple[hf.Skeleton, Path]) -> None:
    model = graph[0].model
    inputs = {value.name: [str(size) for size in value.shape or ()] for value in model.graph.inputs}
    assert list(inputs)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert inputs["input_ids"] == ["batch_size", "sequence_length"]
    assert inputs["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert inputs["past_key_values.0.key"] == ["batch_size", "4", "past_sequence_length", "16"]
    names = [value.name for value in model.graph.outputs]
    assert names == ["logits", "present.0.key", "present.0.value"]


def test_fused_attention_is_one_node_a_layer_and_keeps_inputs_and_outputs(
    graph: tuple[hf.Skeleton, Path],
) -> None:
    plain = graph[0].model
    fused = hf.skeleton(bcq.QuantizedBase.open(graph[1] / "base"), attention="fused").model
    attention = [node for node in fused.graph if node.domain == "com.microsoft"]
    assert [node.op_type for node in attention] == ["GroupQueryAttention"]
    assert attention[0].attributes["num_heads"].as_int() == 4
    assert [value.name for value in fused.graph.inputs] == [value.name for value in plain.graph.inputs]
    assert [value.name for value in fused.graph.outputs] == [value.name for value in plain.graph.outputs]
    assert not any(node.op_type == "Softmax" for node in fused.graph)


@pytest.mark.parametrize("attention", ["plain", "fused"])
def test_logits_of_all_positions_are_the_default_and_of_the_last_ones_an_input(
    graph: tuple[hf.Skeleton, Path], attention: str
) -> None:
    model = hf.skeleton(bcq.QuantizedBase.open(graph[1] / "base"), attention).model
    keep = model.graph.initializers["logits_to_keep"]
    assert keep.is_graph_input()  # with a default: nobody has to feed it
    feeds: Feeds = {
        "input_ids": np.array([[3, 4, 5, 6]]),
        "attention_mask": np.ones((1, 4), np.int64),
        "position_ids": np.arange(4)[None],
        **{f"past_key_values.0.{part}": np.zeros((1, 4, 0, 16), np.float32) for part in ("key", "value")},
    }
    whole = run_without_library(model, feeds)[0]
    last = run_without_library(model, {**feeds, "logits_to_keep": np.array([1])})[0]
    two = run_without_library(model, {**feeds, "logits_to_keep": np.array([2])})[0]
    assert (whole.shape, two.shape, last.shape) == ((1, 4, 50), (1, 2, 50), (1, 1, 50))
    # Products of 64 terms of size 1, summed in another order for another number of rows: 64 * 8 * 2^-24 * 2.
    np.testing.assert_allclose(last, whole[:, -1:], rtol=0, atol=7e-5)
    np.testing.assert_allclose(two, whole[:, -2:], rtol=0, atol=7e-5)


def test_heads_that_the_operator_does_not_take_are_refused_by_their_size(tmp_path: Path) -> None:
    config = small_gpt2(n_embd=48, n_head=4)
    save_model(transformers.GPT2LMHeadModel, config, tmp_path / "model")
    base = bcq.quantize(tmp_path / "model", tmp_path / "base", bits=1, group_size=32)
    with pytest.raises(UnsupportedError, match="12 elements, expected a multiple of 8") as caught:
        hf.skeleton(base, attention="fused")
    assert caught.value.code == "E401"


def test_parameters_keep_their_names_and_read_as_dequantized(graph: tuple[hf.Skeleton, Path]) -> None:
    skeleton, folder = graph
    dense = bcq.QuantizedBase.open(folder / "base")
    assert "transformer.h.0.attn.c_attn.weight" in skeleton.model.graph.initializers
    kept = skeleton.model.graph.initializers["transformer.wpe.weight"].const_value
    assert isinstance(kept, ir.LazyTensor)
    np.testing.assert_array_equal(kept.numpy(), dense.checkpoint.read("transformer.wpe.weight"))
    packed = skeleton.model.graph.initializers["transformer.h.0.attn.c_attn.weight"].const_value
    assert packed is not None
    values = bcq.unpack(dense.packed("transformer.h.0.attn.c_attn.weight")).dequantize()
    np.testing.assert_array_equal(packed.numpy(), values.T)  # Conv1D holds [K, N]


def test_a_shape_that_the_config_contradicts_is_refused(
    graph: tuple[hf.Skeleton, Path], tmp_path: Path
) -> None:
    config = json.loads((graph[1] / "model" / "config.json").read_text())
    for file in (graph[1] / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_positions": 32}))
    with pytest.raises(InputError, match=r"wpe\.weight"):
        bcq.export(tmp_path, tmp_path / "out")
