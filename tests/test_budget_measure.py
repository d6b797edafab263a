# SPDX-License-Identifier: Apache-2.0
"""What a changed model loses on a text, for models with and without logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny_models
from bcq.budget import choose as choose_module
from bcq.budget import measure as measure_module
from bcq.budget import probe as probe_module
from bcq.budget.formats import Format
from bcq.budget.measure import measure
from bcq.budget.own_text import own_text
from bcq.budget.probe import COSINE, KL, Probe
from bcq.budget.sensitivity import Table
from bcq.budget.subjects import EMBEDDING, HEAD, LINEAR, read_model
from bcq.cli import main
from bcq.errors import UsageError
from bcq.matrices.plan import QuantizeOptions
from bcq.report import read_report, summarize
from tiny_tokenizer import save_tokenizer, text

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64, "vocab_size": 100,
}  # fmt: skip
CLASSES = {
    "BertModel": COSINE,
    "BertForSequenceClassification": KL,
    "BertForMaskedLM": KL,
    "BertForQuestionAnswering": KL,
}


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens and formats: what is measured is tested, not how well."""
    monkeypatch.setattr(probe_module, "DECODER_TOKENS", (2, 32))
    monkeypatch.setattr(probe_module, "OTHER_TOKENS", (2, 32))
    for module in (measure_module, choose_module):
        monkeypatch.setattr(module, "formats", lambda inputs: [Format(2), Format(3)])


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text(text(2000), encoding="utf-8")
    return tmp_path / "words.txt"


def bert(name: str, folder: Path) -> Path:
    config = transformers.BertConfig(**SIZES, initializer_range=0.2)
    return save_tokenizer(tiny_models.save_model(getattr(transformers, name), config, folder / "model"))


@pytest.mark.parametrize("name", CLASSES)
def test_a_loss_is_zero_for_the_dense_model_and_grows_with_the_change(
    name: str, words: Path, tmp_path: Path
) -> None:
    probe = Probe(bert(name, tmp_path), words)
    assert probe.measure == CLASSES[name]
    assert probe.loss() == pytest.approx(0.0, abs=1e-6)  # cosines of float32 vectors with themselves
    losses, parameter = [], next(p for n, p in probe.parameters.items() if n.endswith("query.weight"))
    before, noise = parameter.clone(), torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    for size in (0.05, 0.5):
        parameter.copy_(before + size * noise)
        losses.append(probe.loss())
    assert 1e-6 < losses[0] < losses[1]


def test_a_measured_table_has_every_matrix_with_rising_points(words: Path, tmp_path: Path) -> None:
    folder = bert("BertForMaskedLM", tmp_path)
    model = read_model(folder, QuantizeOptions())
    kinds = {subject.name: subject.kind for subject in model.subjects}
    assert kinds["bert.embeddings.word_embeddings.weight"] == HEAD  # the decoder is tied to it
    assert kinds["bert.embeddings.position_embeddings.weight"] == EMBEDDING
    assert kinds["cls.predictions.transform.dense.weight"] == LINEAR
    table = measure(folder, model.subjects, words, "greedy")
    assert set(table.matrices) == set(kinds)
    for entry in table.matrices.values():
        errors, losses = zip(*entry.points, strict=True)
        assert list(errors) == sorted(errors)
        assert list(losses) == sorted(losses)
    assert measure(folder, model.subjects, words, "greedy") == table


def test_a_language_model_writes_its_own_text_and_always_the_same(tmp_path: Path) -> None:
    folder = save_tokenizer(tiny_models.save("gpt2", tmp_path / "model"))
    first, second = Probe(folder, Path("self")), Probe(folder, Path("self"))
    assert first.digest == second.digest
    assert first.loss() == 0.0
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    written = own_text(model, 3, 20)
    assert written.shape == (3, 20)
    # The model prefers what it wrote to other tokens: likelier than a guess among 100.
    with torch.inference_mode():
        logits = model(input_ids=written).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), written[:, 1:].flatten())
    assert loss < math.log(100)


def test_a_model_that_writes_no_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="writes no text") as caught:
        Probe(bert("BertModel", tmp_path), Path("self"))
    assert caught.value.code == "E203"


def test_a_calibrated_run_measures_on_its_own_text(words: Path, tmp_path: Path) -> None:
    folder = save_tokenizer(tiny_models.save("gpt2", tmp_path / "model", n_layer=1))
    command = ["quantize", str(folder), "-o", str(tmp_path / "base"), "--target-bpw", "3.2", "--quiet"]
    command += ["--calibrate", str(words), "--calibration-windows", "2", "--workers", "1"]
    command += ["--sensitivity", str(tmp_path / "s.json"), "--set", "h.*=2:g32"]
    assert main(command) == 0
    assert Table.read(tmp_path / "s.json").measure == KL
    rows = json.loads((tmp_path / "base" / "bcq_report.json").read_text())["matrices"]
    methods = {row["name"]: row.get("method") for row in rows if row["bits"]}
    assert methods["transformer.h.0.mlp.c_fc.weight"] == "calibrated"
    assert summarize(read_report(tmp_path / "base") or [], 0, 0.0).bits_per_weight <= 3.2


def test_conv1d_matrices_are_put_back_as_they_were(words: Path, tmp_path: Path) -> None:
    folder = save_tokenizer(tiny_models.save("gpt2", tmp_path / "model"))
    model = read_model(folder, QuantizeOptions(overrides=("wpe=keep", "h.1.*=2")))
    found = [subject for subject in model.subjects if subject.fixed is None]
    assert {subject.transposed for subject in found if subject.kind == LINEAR} == {True}
    table = measure(folder, model.subjects, words, "greedy")
    assert set(table.matrices) == {subject.name for subject in found}
    assert table.measure == KL
