# SPDX-License-Identifier: Apache-2.0
"""A model folder becomes a base: what is packed, what is copied, what is refused, and that bytes repeat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bcq import packing, report
from bcq.errors import BcqError
from bcq.files.base import QuantizedBase
from bcq.files.checkpoint import SINGLE, Checkpoint
from bcq.matrices.plan import QuantizeOptions
from bcq.quantize import REPORT, plan, quantize
from bcq.solver import relative_error

WORDS = "transformer.wte.weight"
ATTENTION = "transformer.h.0.attn.c_attn.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=70, n_embd=64, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return tmp_path / "model"


def change(model: Path, name: str, value: torch.Tensor) -> None:
    save_file({**load_file(model / SINGLE), name: value}, model / SINGLE)


@pytest.mark.parametrize(
    "options", [QuantizeOptions(bits=2, group_size=32, offset=True), QuantizeOptions(group_size=0)]
)
def test_matrices_are_packed_and_everything_else_is_copied(
    model: Path, tmp_path: Path, options: QuantizeOptions
) -> None:
    base = quantize(model, tmp_path / "base", options)
    dense = Checkpoint.open(model)
    assert len(base.names()) == 6
    assert set(base.names()) | set(base.dense_names()) == set(dense.names())
    for name in base.dense_names():
        assert base.checkpoint.raw(name) == dense.raw(name)
        assert base.checkpoint.dtype(name) == dense.dtype(name)
    weight = packing.unpack(base.packed(ATTENTION))
    assert (weight.rows, weight.inputs, weight.bits) == (192, 64, options.bits)
    assert (weight.offset is not None) == options.offset
    reported = json.loads((tmp_path / "base" / REPORT).read_text())["matrices"]
    error = next(entry["relative_error"] for entry in reported if entry["stored"] == ATTENTION)
    assert error == relative_error(dense.read(ATTENTION).T, weight) < 0.2
    assert (tmp_path / "base" / "tokenizer.json").is_file()
    assert base.config["quantization_config"]["quant_method"] == "bcq"


def test_a_tied_head_is_the_packed_embedding(model: Path, tmp_path: Path) -> None:
    base = quantize(model, tmp_path / "base")
    np.testing.assert_array_equal(base.packed("lm_head.weight").codes, base.packed(WORDS).codes)
    assert base.find("transformer.ln_f.weight") is None


def test_overrides_and_kept_embeddings_are_obeyed(model: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(bits=1, embeddings=False, overrides=("h.*.attn.*=2", "mlp.c_fc=keep"))
    base = quantize(model, tmp_path / "base", options)
    assert base.packed(ATTENTION).bits == 2
    assert base.packed("transformer.h.0.mlp.c_proj.weight").bits == 1
    assert {WORDS, "transformer.h.0.mlp.c_fc.weight"} <= set(base.dense_names())


def test_each_matrix_may_have_its_own_group_size_and_offset(model: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(bits=2, offset=True, overrides=("h.*.attn.*=2:g32:no-offset", "mlp.c_fc=1:g0"))
    base = quantize(model, tmp_path / "base", options)
    matrices = {
        name: (matrix.bits, matrix.group_size, matrix.offset) for name, matrix in base.matrices.items()
    }
    assert matrices[ATTENTION] == (2, 32, False)
    assert matrices["transformer.h.0.mlp.c_fc.weight"] == (1, 64, True)
    assert matrices[WORDS] == (2, 128, True)
    rows = report.read_report(tmp_path / "base") or []
    assert {row.name: row.offset for row in rows if row.bits} == {
        matrix.name: matrix.offset for matrix in base.matrices.values()
    }


def test_the_plan_names_every_matrix_without_solving(model: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(bits=3, group_size=32, overrides=("wpe=keep",))
    planned = plan(model, options)
    base = quantize(model, tmp_path / "base", options)
    assert len(planned) == 7
    for matrix in planned:
        if matrix.bits is not None:
            assert matrix.packed_bytes == base.packed(matrix.stored).nbytes
            assert matrix.dense_bytes == 4 * matrix.rows * matrix.inputs
        else:
            assert matrix.reason
    assert next(matrix for matrix in planned if matrix.name == "transformer.wpe.weight").requested


def test_two_runs_write_the_same_bytes(model: Path, tmp_path: Path) -> None:
    first, second = quantize(model, tmp_path / "a"), quantize(model, tmp_path / "b")
    assert first.base_hash == second.base_hash
    for path in sorted((tmp_path / "a").rglob("*")):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", [ATTENTION, "transformer.ln_f.bias"])
def test_a_weight_that_is_not_finite_is_named_and_the_old_base_stays(
    model: Path, tmp_path: Path, name: str
) -> None:
    before = quantize(model, tmp_path / "base").base_hash
    broken = load_file(model / SINGLE)[name].clone()
    broken.view(-1)[3] = float("nan")
    change(model, name, broken)
    with pytest.raises(BcqError, match=name.replace(".", r"\.")) as caught:
        quantize(model, tmp_path / "base")
    assert caught.value.code == "E106"
    assert QuantizedBase.open(tmp_path / "base").base_hash == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


def test_a_model_that_is_quantized_already_is_refused(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "base")
    with pytest.raises(BcqError, match="quantized already") as caught:
        quantize(tmp_path / "base", tmp_path / "again")
    assert caught.value.code == "E401"


def test_a_pattern_that_matches_nothing_is_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BcqError) as caught:
        quantize(model, tmp_path / "base", QuantizeOptions(overrides=("h.*.mpl.*=4",)))
    assert caught.value.code == "E201"
    assert not (tmp_path / "base").exists()


def test_progress_is_told_once_a_matrix(model: Path, tmp_path: Path) -> None:
    told: list[Any] = []

    class Recorder:
        def start(self, what: str, total: int) -> None:
            told.append((what, total))

        def step(self, name: str, detail: str = "") -> None:
            told.append(name)

        def done(self) -> None:
            told.append("done")

    quantize(model, tmp_path / "base", progress=Recorder())
    assert told[0] == ("quantize", 6)
    assert len(told) == 8
    assert told[-1] == "done"


def configure(model: Path, **changes: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"quantization_config": "x"}, "E102"), ({"n_layer": 0}, "E102"), ({"n_layer": -1}, "E102")],
)
def test_a_configuration_that_makes_no_sense_is_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    configure(model, **changes)
    with pytest.raises(BcqError, match=next(iter(changes))) as caught:
        quantize(model, tmp_path / "base")
    assert caught.value.code == code


def test_a_weight_of_a_layer_that_the_model_lacks_is_named(model: Path, tmp_path: Path) -> None:
    stray = ATTENTION.replace("h.0", "h.9")
    change(model, stray, torch.zeros(64, 192))
    with pytest.raises(BcqError, match=stray) as caught:
        quantize(model, tmp_path / "base")
    assert caught.value.code == "E107"


@pytest.mark.parametrize(
    "name", ["transformer.h.0.attn.bias", "transformer.h.9.attn.masked_bias", "classifier.weight"]
)
def test_a_leftover_that_is_no_layer_of_the_model_is_harmless(model: Path, tmp_path: Path, name: str) -> None:
    change(model, name, torch.ones(16, 16))
    assert name in quantize(model, tmp_path / "base").dense_names()


def test_a_damaged_side_file_is_found_before_the_work_and_named_where_it_lies(
    model: Path, tmp_path: Path
) -> None:
    (model / "generation_config.json").write_text("[]")
    with pytest.raises(BcqError, match=str(model / "generation_config.json")) as caught:
        quantize(model, tmp_path / "base", progress=Never())
    assert caught.value.code == "E102"


class Never:
    def start(self, what: str, total: int) -> None:
        raise AssertionError("work began")

    def step(self, name: str, detail: str = "") -> None: ...

    def done(self) -> None: ...


def test_a_base_does_not_replace_its_source(model: Path, tmp_path: Path) -> None:
    for output in (model, tmp_path):
        with pytest.raises(BcqError) as caught:
            quantize(model, output)
        assert caught.value.code == "E203"
    assert (model / SINGLE).is_file()
