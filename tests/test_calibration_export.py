# SPDX-License-Identifier: Apache-2.0
"""`bcq export MODEL --calibrate TEXT` makes in one step what quantizing and exporting make in two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="exporting needs the packages for compiling")

import bcq
import tiny_models
from bcq.calibration import CalibrationOptions
from bcq.errors import UsageError
from bcq.export import export
from tiny_tokenizer import save_tokenizer, text


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(text(400))
    return tmp_path / "text.txt"


def test_a_calibrated_export_is_that_of_the_calibrated_base(tmp_path: Path, words: Path) -> None:
    model = save_tokenizer(tiny_models.save("gpt2", tmp_path / "model", n_layer=1))
    base = bcq.quantize(model, tmp_path / "base", bits=2, group_size=32, calibrate=words, workers=1)
    export(base, tmp_path / "two")
    bcq.export(model, tmp_path / "one", bits=2, group_size=32, calibrate=words, workers=1)
    for file in (tmp_path / "two").glob("model.onnx*"):
        assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes()
    options = json.loads((tmp_path / "one" / "bcq_report.json").read_text())["options"]
    assert options["calibration"]["text"] == "text.txt"


def test_a_text_for_a_base_or_a_graph_is_refused(tmp_path: Path, words: Path) -> None:
    base = bcq.quantize(tiny_models.save("gpt2", tmp_path / "model", n_layer=1), tmp_path / "base", bits=1)
    for source in (base, tmp_path / "base", tmp_path / "model.onnx"):
        with pytest.raises(UsageError, match="--calibrate needs a dense model folder") as caught:
            export(source, tmp_path / "out", calibration=CalibrationOptions(words))
        assert caught.value.code == "E203"
