# SPDX-License-Identifier: Apache-2.0
"""A T5 from its folder to answers: two graphs over one data file, and everything that generates with them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import torch
import transformers
from safetensors.torch import load_file, save_file

import bcq
from bcq.adapters.adapter import Adapter
from bcq.cli import main
from bcq.errors import BcqError
from bcq.evaluate import perplexity
from bcq.export import export
from bcq.files.exported import ExportedWeights
from bcq.generation.conversation import Conversation
from bcq.generation.encoder_decoder import EncoderDecoder
from bcq.generation.template import PlainForm
from bcq.parity.reference import original_model
from bcq.precisions.files import ENCODER_FILE, MODEL_FILE
from bcq.serve.engine import Engine
from bcq.serve.limits import Limits
from bcq.serve.refusal import Refusal
from bcq.serve.request import parse
from tiny_adapters import task
from tiny_families import give_own_head, save
from tiny_tokenizer import WORDS

SOURCE = [5, 17, 33, 60, 2, 9, 71, 1]
PROMPTS = [SOURCE, [40, 8, 1], SOURCE[3:], [*SOURCE[2:5], 90, 44, 1], [3, 1]]
NORM = "encoder.final_layer_norm.weight"


@dataclass(frozen=True)
class Made:
    """An mT5 with a head of its own and a tokenizer, its base, and an export of 4 and 2 bits."""

    dense: Path
    base: bcq.QuantizedBase
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("t5")
    _save_tokenizer(give_own_head(save("mt5", root / "model")))
    base = bcq.quantize(root / "model", root / "base", bits=4, also_bits=(2,), group_size=32)
    export(base, root / "out")
    return Made(root / "model", base, root / "out")


def _save_tokenizer(folder: Path) -> None:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", *WORDS[2:]]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram([(f"\u2581{word}", 0.0) for word in words], 2))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A \u2581</s>", special_tokens=[("\u2581</s>", 1)]
    )
    PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(folder)


@pytest.fixture(scope="module")
def model(made: Made) -> EncoderDecoder:
    opened = bcq.load(made.folder)
    assert isinstance(opened, EncoderDecoder)
    return opened


@pytest.mark.parametrize("bits", [None, 2])
def test_answers_are_pytorchs_over_64_steps_at_every_precision(made: Made, bits: int | None) -> None:
    result = bcq.verify(made.folder, made.dense, tokens=SOURCE, steps=64, per_layer=True, bits=bits)
    assert result.ok
    assert result.reason is None
    assert [layer["layer"] for layer in result.layers] == [0, 1]
    assert max(layer[part] for layer in result.layers for part in ("keys", "values")) < result.tolerance


def test_a_head_that_the_file_holds_apart_is_not_tied_though_the_configuration_says_so(made: Made) -> None:
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(made.dense, attn_implementation="eager")
    ours = original_model(made.dense)
    head, embedding = theirs.lm_head.weight, theirs.shared.weight
    assert not torch.equal(head, embedding)
    assert torch.equal(ours.lm_head.weight, head)
    assert torch.equal(ours.encoder.embed_tokens.weight, embedding)
    assert {"lm_head.weight", "shared.weight"} <= set(made.base.names())
    assert {"lm_head.weight", "shared.weight"} <= ExportedWeights.open(made.folder).names()


def test_a_tied_tensor_that_the_file_holds_twice_is_kept_once(tmp_path: Path) -> None:
    folder = save("t5", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    base = bcq.quantize(folder, tmp_path / "base", bits=1, group_size=32, method="greedy")
    assert base.find("shared.weight") is base.find("encoder.embed_tokens.weight")
    assert "encoder.embed_tokens.weight" not in {*base.names(), *base.dense_names()}


def test_answers_depend_on_the_source_and_vary(model: EncoderDecoder) -> None:
    answers = [model.generate(prompt, 40) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) == len(PROMPTS)
    assert len({token for answer in answers for token in answer}) > 2 * len(PROMPTS)


def test_sources_of_different_lengths_run_together_as_each_alone(model: EncoderDecoder) -> None:
    assert model.generate_batch(PROMPTS, None, 24) == [model.generate(prompt, 24) for prompt in PROMPTS]


def test_a_step_reads_no_projection_of_the_source_and_shared_matrices_are_stored_once(made: Made) -> None:
    graphs = {name: ir.load(made.folder / name).graph for name in (MODEL_FILE, ENCODER_FILE)}
    places = {
        name: {
            key: (value.const_value.location, value.const_value.offset)
            for key, value in graph.initializers.items()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        for name, graph in graphs.items()
    }
    projections = {name: [key for key in places[name] if "EncDecAttention.k" in key] for name in places}
    assert projections[MODEL_FILE] == []
    assert len(projections[ENCODER_FILE]) == 3  # codes and factors of one product for all layers
    both = places[MODEL_FILE].keys() & places[ENCODER_FILE].keys()
    assert any(name.startswith("shared.weight") for name in both)
    assert all(places[MODEL_FILE][name] == places[ENCODER_FILE][name] for name in both)
    assert {location for files in places.values() for location, _ in files.values()} == {"model.onnx.data"}


def test_tables_with_a_number_for_each_head_stay_dense(made: Made) -> None:
    weights = ExportedWeights.open(made.folder)
    tables = [name for name in weights.dense if "relative_attention_bias" in name]
    assert len(tables) == 2  # of the encoder and of the decoder
    report = json.loads((made.folder / "bcq_report.json").read_text())
    reasons = {row["reason"] for row in report["matrices"] if "relative_attention_bias" in row["name"]}
    assert len(reasons) == 1


def test_text_goes_in_with_its_end_token_and_comes_out_alone(
    made: Made, model: EncoderDecoder, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "w3 w15 w31"
    assert model.encode(text)[-1] == 1
    answer = model.generate(text, 12)
    assert answer.split() == model.decode(model.generate(model.encode(text), 12)).split()
    assert main(["run", str(made.folder), "-p", text, "-n", "12"]) == 0
    assert capsys.readouterr().out.strip() == answer.strip()  # without the prompt, which it does not continue
    assert main(["run", str(made.folder), "-p", text, "-n", "12", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["continuation"], told["prompt_tokens"]) == (answer, 4)


def test_prompts_of_a_file_are_answered_one_by_one(
    made: Made, model: EncoderDecoder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["w3 w15 w31", "w60"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(texts)))
    assert main(["run", str(made.folder), "--prompts", "-", "-n", "8"]) == 0
    assert capsys.readouterr().out.split("\n\n")[:2] == [model.generate(text, 8) for text in texts]


def test_the_file_alone_gives_the_same_tokens_without_the_library(made: Made, model: EncoderDecoder) -> None:
    alone = bcq.load(made.folder, with_library=False)
    assert alone.generate(SOURCE, 6) == model.generate(SOURCE, 6)


def test_a_stream_is_the_answer_piece_by_piece(model: EncoderDecoder) -> None:
    assert "".join(model.stream("w3 w15", 10)) == model.generate("w3 w15", 10)


def test_completions_are_served_and_chats_refused(model: EncoderDecoder) -> None:
    engine = Engine(model, "m", PlainForm(), Limits())
    asked = {"model": "m", "prompt": ["w3 w15", "w60"], "max_tokens": 8, "temperature": 0}
    planned = engine.plan(parse(json.dumps(asked).encode(), Limits(), False))
    answers = ["".join(begin().texts()) for begin in planned.begins]
    assert answers == [model.generate(text, 8) for text in ("w3 w15", "w60")]
    assert planned.prompt_tokens == 5  # with the end token of each
    chat = {"model": "m", "messages": [{"role": "user", "content": "w3"}]}
    with pytest.raises(Refusal, match="no conversation") as caught:
        engine.plan(parse(json.dumps(chat).encode(), Limits(), True))
    assert caught.value.status == 400


def test_an_adapter_of_both_graphs_is_put_into_both(made: Made, tmp_path: Path) -> None:
    give_own_head(save("mt5", tmp_path / "model"))
    base = bcq.quantize(tmp_path / "model", tmp_path / "base", bits=2, group_size=32, method="greedy")
    dense = {NORM: base.checkpoint.read(NORM) * np.float32(0.25)}
    adapter: Adapter = replace(task(base, "quieter", 1), dense=dense)
    export(base, tmp_path / "out", adapter=adapter)
    assert bcq.verify(tmp_path / "out", steps=8).ok
    weights = ExportedWeights.open(tmp_path / "out")
    np.testing.assert_array_equal(weights.dense[NORM].numpy(), dense[NORM])
    changed = [name for name in weights.packed if (weights.dequantized(name) != _plain(base, name)).any()]
    assert set(changed) == set(base.names())


def _plain(base: bcq.QuantizedBase, name: str) -> NDArray[Any]:
    return bcq.unpack(base.packed(name)).dequantize()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"attention": "fused"}, "E401", "bias for each distance"),
        ({"kv_cache": "int8"}, "E203", "encoder-decoder"),
        ({"adapters": ["a"]}, "E203", "cannot swap tasks"),
    ],
)
def test_what_an_encoder_decoder_cannot_have_is_said_before_any_work(
    made: Made, tmp_path: Path, options: dict[str, Any], code: str, said: str
) -> None:
    if "adapters" in options:
        options = {"adapters": [task(made.base, "a", 1)]}
    with pytest.raises(BcqError, match=said) as caught:
        export(made.base, tmp_path / "out", **options)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_it_is_not_tuned_has_no_perplexity_and_holds_no_conversation(
    made: Made, model: EncoderDecoder, tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").write_text('{"mr": "w3 w4", "ref": "w5"}\n' * 4)
    with pytest.raises(BcqError, match="cannot be tuned"):
        bcq.tune(made.base, tmp_path / "data.jsonl", tmp_path / "adapter")
    with pytest.raises(BcqError, match="no perplexity"):
        perplexity(made.folder, "w3 w4 w5 w6")
    with pytest.raises(BcqError, match="no conversation"):
        Conversation(model, PlainForm())


def test_a_description_without_the_first_token_is_refused(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "out"))
    file = folder / "encoder_decoder_config.json"
    described = json.loads(file.read_text())
    del described["model"]["decoder_start_token_id"]
    file.write_text(json.dumps(described))
    with pytest.raises(BcqError, match="decoder_start_token_id: got None, expected a token id, 0 to 99"):
        bcq.load(folder)


def test_an_export_without_its_encoder_is_refused(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "out"))
    (folder / ENCODER_FILE).unlink()
    with pytest.raises(BcqError, match=ENCODER_FILE) as caught:
        bcq.load(folder)
    assert caught.value.code == "E101"
