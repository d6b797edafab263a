# SPDX-License-Identifier: Apache-2.0
"""Folders of onnxruntime-genai's model builder: sizes that it leaves open, files that the export keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from bcq.errors import InputError
from bcq.frontends.genai_folder import GenaiFolder
from graphs import model_of

DECODER: dict[str, Any] = {"filename": "model.onnx", "head_size": 16, "session_options": {"log_id": "x"}}


def folder_of(path: Path, decoder: Any = DECODER) -> Path:
    """A folder as the builder leaves it; returns the path of its model."""
    (path / "genai_config.json").write_text(json.dumps({"model": {"type": "llama", "decoder": decoder}}))
    (path / "tokenizer.json").write_text("{}")
    return path / "model.onnx"


def graph() -> ir.Model:
    model = model_of("g (float[b, s, 16] x, float[b, 2, p, d] past) => (float[b, s, 16] y) { y = Relu (x) }")
    model.graph.inputs[1].name = "past_key_values.0.key"
    return model


def test_the_size_of_heads_is_noted_at_the_inputs_of_the_cache(tmp_path: Path) -> None:
    around, model = GenaiFolder.around(folder_of(tmp_path)), graph()
    assert around is not None
    around.name_sizes(model)
    assert [str(value.shape) for value in model.graph.inputs] == ["[b,s,16]", "[b,2,p,16]"]


def test_configuration_library_and_tokenizer_go_along(tmp_path: Path) -> None:
    around = GenaiFolder.around(folder_of(tmp_path))
    assert around is not None
    (tmp_path / "lib.so").write_bytes(b"code")
    target = tmp_path / "out"
    target.mkdir()
    around.write(target, tmp_path / "lib.so", "packed.onnx")
    decoder = json.loads((target / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["filename"] == "packed.onnx"
    assert decoder["session_options"] == {"log_id": "x", "custom_ops_library": "lib.so"}
    assert sorted(path.name for path in target.iterdir()) == ["genai_config.json", "lib.so", "tokenizer.json"]


@pytest.mark.parametrize("decoder", [{"filename": "other.onnx"}, {}, None, "text"])
def test_a_configuration_of_another_model_is_not_taken(tmp_path: Path, decoder: Any) -> None:
    assert GenaiFolder.around(folder_of(tmp_path, decoder)) is None


def test_a_file_alone_has_no_folder_around_it(tmp_path: Path) -> None:
    assert GenaiFolder.around(tmp_path / "model.onnx") is None


def test_code_beside_the_model_is_refused(tmp_path: Path) -> None:
    file = folder_of(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {}}')
    with pytest.raises(InputError, match="auto_map"):
        GenaiFolder.around(file)
