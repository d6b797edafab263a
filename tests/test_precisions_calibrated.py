# SPDX-License-Identifier: Apache-2.0
"""Calibrated bases of several precisions: better at each, the same bytes on every way, exported whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="calibrating needs the packages for compiling")

import torch
import transformers

import bcq
import tiny_models
from bcq import packing
from bcq.calibration import CalibrationOptions
from bcq.export import export
from bcq.files.base import QuantizedBase
from bcq.matrices.plan import QuantizeOptions
from bcq.quantize import REPORT, quantize
from test_calibration import StopsAt
from tiny_tokenizer import save_tokenizer, text

OPTIONS = QuantizeOptions(bits=3, group_size=32, also_bits=(1, 2), overrides=["wpe*=keep"])
LAYER = "transformer.h.0.mlp.c_fc.weight"
TABLE = "transformer.wte.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text, its data-free and its calibrated base, and the export of the latter."""
    root = tmp_path_factory.mktemp("made")
    model = save_tokenizer(tiny_models.save("gpt2", root / "model", n_layer=1))
    (root / "text.txt").write_text(text(1000))
    quantize(model, root / "plain", OPTIONS)
    base = quantize(model, root / "base", OPTIONS, calibration=calibration(root, 1))
    export(base, root / "out")
    return root


def calibration(root: Path, workers: int) -> CalibrationOptions:
    return CalibrationOptions(root / "text.txt", workers=workers)


def rows_of(base: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((base / REPORT).read_text())["matrices"]
    return {row["stored"]: row for row in rows if row["bits"]}


def outputs(model: Path, base: Path | None = None, bits: int | None = None) -> torch.Tensor:
    """Last hidden states on text that was not calibrated on, with the matrices of one precision of a base."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if base is not None:
        opened = QuantizedBase.open(base)
        for name, parameter in loaded.named_parameters():
            if matrix := opened.find(name):
                dense = packing.unpack(opened.packed(matrix.stored, bits)).dequantize()
                parameter.data.copy_(torch.from_numpy(dense.T if matrix.transposed else dense))
    ids = transformers.AutoTokenizer.from_pretrained(model)(text(600, seed=1))["input_ids"]
    with torch.inference_mode():
        states: torch.Tensor = loaded.base_model(torch.tensor(ids[:600]).reshape(-1, 30)).last_hidden_state
    return states


def test_every_precision_changes_the_outputs_less_than_without_calibration(made: Path) -> None:
    expected = outputs(made / "model")
    wrong = {
        (base, bits): float((outputs(made / "model", made / base, bits) - expected).square().mean())
        for base in ("plain", "base")
        for bits in (1, 2, 3)
    }
    for bits in (1, 2, 3):
        assert wrong["base", bits] < 0.95 * wrong["plain", bits], wrong


def test_the_report_has_method_and_errors_of_each_precision(made: Path) -> None:
    row = rows_of(made / "base")[LAYER]
    assert row["method"] == "calibrated"
    errors = [*(entry["calibrated_error"] for entry in row["also"]), row["calibrated_error"]]
    assert [entry["bits"] for entry in row["also"]] == [1, 2]
    assert errors == sorted(errors, reverse=True)
    assert all(
        0 < error < entry["relative_error"] for error, entry in zip(errors, [*row["also"], row], strict=True)
    )
    table = rows_of(made / "base")[TABLE]  # it is also the head
    assert table["method"] == "calibrated"
    assert all(0 < entry["calibrated_error"] < 1 for entry in [*table["also"], table])
    assert "calibrated_error" not in json.dumps(rows_of(made / "plain"))


@pytest.mark.parametrize("name", [LAYER, TABLE])
def test_precisions_share_codes_that_are_not_those_of_the_data_free_base(name: str, made: Path) -> None:
    base, plain = QuantizedBase.open(made / "base"), QuantizedBase.open(made / "plain")
    for bits in (1, 2):
        assert np.array_equal(base.packed(name, bits).codes, base.packed(name).codes)
    assert base.packed(name).code_hash() != plain.packed(name).code_hash()


@pytest.mark.parametrize("bits", [3, 2, 1])
def test_each_precision_of_the_export_is_what_pytorch_computes_with_its_weights(
    made: Path, bits: int
) -> None:
    result = bcq.verify(made / "out", bits=bits, steps=3)
    assert result.ok
    assert result.tokens_equal


def test_the_graph_of_a_precision_gives_the_outputs_of_its_weights(made: Path) -> None:
    tokens = np.array([[5, 6, 7, 8, 9]])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(made / "model", dtype=torch.float32).eval()
    base = QuantizedBase.open(made / "base")
    for name, parameter in loaded.named_parameters():
        if matrix := base.find(name):
            dense = packing.unpack(base.packed(matrix.stored, 2)).dequantize()
            parameter.data.copy_(torch.from_numpy(dense.T if matrix.transposed else dense))
    with torch.inference_mode():
        expected = loaded(torch.from_numpy(tokens)).logits.double().numpy()
    opened = bcq.load(made / "out", bits=2)
    logits, _ = opened.logits(tokens, opened.empty_cache(), np.ones_like(tokens))
    # 4 products and the head, each within 1e-4 (ops/README.md): sqrt(5) 1e-4, twice for what layers add.
    assert np.linalg.norm(logits - expected[:, -logits.shape[1] :]) <= 5e-4 * np.linalg.norm(expected)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_number_of_workers_makes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    quantize(made / "model", tmp_path / "base", OPTIONS, calibration=calibration(made, 2))
    assert contents(tmp_path / "base") == contents(made / "base")


def test_a_stopped_run_goes_on_with_the_same_bytes(made: Path, tmp_path: Path) -> None:
    progress = StopsAt(3)
    with pytest.raises(KeyboardInterrupt):
        quantize(made / "model", tmp_path / "base", OPTIONS, progress, calibration=calibration(made, 1))
    assert "calibrated error" in progress.told[-1]
    assert ", 2 bits 0." in progress.told[-1]
    assert ", 1 bits 0." in progress.told[-1]
    kept = sorted((tmp_path / ".base.resume").glob("*-1bit.safetensors"))
    assert len(kept) == 3  # the table and two layers
    kept[0].unlink()  # as if it had been killed between two precisions of a matrix
    quantize(made / "model", tmp_path / "base", OPTIONS, calibration=calibration(made, 1), resume=True)
    assert contents(tmp_path / "base") == contents(made / "base")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
