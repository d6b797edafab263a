# SPDX-License-Identifier: Apache-2.0
"""The manifest lists every file with its hash, and finds each one that changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from bcq.errors import InputError
from bcq.files import manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "adapters" / "a.bin").write_bytes(b"alphas")
    manifest.write_manifest(tmp_path, ["bcq", "export", "m"], seed=3)
    return tmp_path


def test_it_holds_hashes_sizes_versions_command_and_seed(folder: Path) -> None:
    content = json.loads((folder / manifest.NAME).read_text())
    assert content["files"] == {
        "adapters/a.bin": {"bytes": 6, "sha256": hashlib.sha256(b"alphas").hexdigest()},
        "model.onnx": {"bytes": 5, "sha256": hashlib.sha256(b"graph").hexdigest()},
    }
    assert (content["command"], content["seed"]) == (["bcq", "export", "m"], 3)
    assert {"python", "numpy", "onnx"} <= content["versions"].keys()


def test_writing_it_again_gives_the_same_bytes(folder: Path) -> None:
    before = (folder / manifest.NAME).read_bytes()
    manifest.write_manifest(folder, ["bcq", "export", "m"], seed=3)
    assert (folder / manifest.NAME).read_bytes() == before


def test_an_untouched_folder_has_no_faults(folder: Path) -> None:
    assert manifest.check_manifest(folder) == []


def test_each_kind_of_damage_is_named_with_its_file(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"grapH")
    assert manifest.check_manifest(folder) == ["model.onnx has other content than when it was written."]
    (folder / "model.onnx").write_bytes(b"gra")
    assert manifest.check_manifest(folder) == ["model.onnx has 3 bytes, expected 5."]
    (folder / "model.onnx").unlink()
    assert manifest.check_manifest(folder) == ["model.onnx is missing."]


@pytest.mark.parametrize(
    ("text", "code"),
    [(None, "E101"), ("{", "E103"), ("[]", "E103"), ('{"files": {"a": 1}}', "E103")],
)
def test_a_missing_or_damaged_manifest_is_one_clear_error(
    tmp_path: Path, text: str | None, code: str
) -> None:
    if text is not None:
        (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(InputError) as caught:
        manifest.check_manifest(tmp_path)
    assert caught.value.code == code
