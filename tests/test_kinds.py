# SPDX-License-Identifier: Apache-2.0
"""A wrong input is told what it is, what was expected and what to do, by every verb that reads one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import bcq
from bcq import cli, doctor
from bcq.errors import BcqError
from bcq.files import kinds
from bcq.files.checkpoint import Checkpoint
from bcq.files.integrity import check_integrity
from bcq.matrices import listing

OURS = {"quantization_config": {"quant_method": "bcq"}}
FOLDERS = {
    "dense": {"config.json": "{}", "model.safetensors": ""},
    "dense_with_onnx": {"config.json": "{}", "model.safetensors": "", "model.onnx": ""},
    "base": {"config.json": json.dumps(OURS), "model.safetensors": ""},
    "out": {"config.json": json.dumps(OURS), "model.onnx": "", "model.onnx.data": "", "MANIFEST.json": "{}"},
    "unlisted": {"model.onnx": ""},
    "adapter": {"adapter_config.json": "{}"},
    "other": {"notes.txt": "hello", "alone.onnx": ""},
}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder, files in FOLDERS.items():
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("dense", kinds.DENSE),
        ("dense_with_onnx", kinds.DENSE),
        ("base", kinds.BASE),
        ("out", kinds.EXPORT),
        ("out/model.onnx", kinds.PART),
        ("out/model.onnx.data", kinds.PART),
        ("unlisted", kinds.UNLISTED),
        ("adapter", kinds.ADAPTER),
        ("other", kinds.FOLDER),
        ("other/alone.onnx", kinds.ONNX),
        ("other/notes.txt", kinds.FILE),
        ("nothing", None),
    ],
)
def test_a_path_is_what_its_files_say(path: str, kind: kinds.Kind | None, inputs: Path) -> None:
    assert kinds.kind_of(inputs / path) == kind


def test_a_configuration_that_cannot_be_read_is_no_base(inputs: Path) -> None:
    (inputs / "base" / "config.json").write_text("{", encoding="utf-8")
    assert kinds.kind_of(inputs / "base") == kinds.DENSE


def refused(work: Callable[[], object]) -> BcqError:
    with pytest.raises(BcqError) as caught:
        work()
    assert caught.value.exit_code == 3
    return caught.value


EXPORT_EXPECTED = {
    "dense": ("E102", "is a dense model folder", "bcq export dense -o"),
    "base": ("E102", "is a quantized base", "bcq export base -o"),
    "adapter": ("E102", "is an adapter", "Give the export that it belongs to"),
    "other": ("E102", "is a folder without a model", "`bcq export` wrote"),
    "other/alone.onnx": ("E102", "is an .onnx file", "bcq.session opens a single file"),
    "other/notes.txt": ("E102", "is a file", "`bcq export` wrote"),
    "out/model.onnx": ("E102", "is one file of an export", "Give the whole folder, out."),
    "nothing": ("E101", "does not exist", "`bcq export` wrote"),
}


@pytest.mark.parametrize("path", EXPORT_EXPECTED)
@pytest.mark.parametrize("read", [bcq.load, bcq.verify])
def test_where_an_export_is_expected_the_message_says_what_was_given(
    read: Callable[[str], object], path: str, inputs: Path
) -> None:
    error = refused(lambda: read(path))
    code, given, advice = EXPORT_EXPECTED[path]
    assert (error.code, given in error.message, advice in error.hint) == (code, True, True)


@pytest.mark.parametrize("path", ["dense", "other", "other/notes.txt", "out/model.onnx"])
def test_integrity_is_that_of_an_export_or_a_base(path: str, inputs: Path) -> None:
    error = refused(lambda: check_integrity(path))
    assert error.code == "E102"
    assert f"{path} is a" in error.message.replace(" one file", " a file")
    assert "expected an export, a quantized base or an adapter" in error.message


@pytest.mark.parametrize(
    ("export", "against", "expected"),
    [
        ("out", "base", "base is a quantized base, expected a dense model folder"),
        ("out", "out", "out is an export, expected a dense model folder"),
        ("out", "other/alone.onnx", "is an .onnx file, expected a dense model folder"),
        ("unlisted", "dense", "dense is a dense model folder, expected an .onnx file"),
        ("unlisted", "nothing", "nothing does not exist"),
    ],
)
def test_an_export_is_compared_with_what_it_was_made_of(
    export: str, against: str, expected: str, inputs: Path
) -> None:
    error = refused(lambda: bcq.verify(export, against))
    assert expected in error.message
    assert f"Give the model that {export} was made of." in error.hint


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("other/notes.txt", "is a file, expected a model folder. Give the path of a local model folder"),
        ("other/alone.onnx", "is an .onnx file, expected a model folder. An .onnx file needs no base"),
        ("out/model.onnx", "is one file of an export, expected a model folder. It is packed already"),
        ("nothing", "does not exist. Give the path of a local model folder"),
    ],
)
def test_a_file_is_no_model_folder(path: str, expected: str, inputs: Path) -> None:
    assert expected in str(refused(lambda: Checkpoint.open(Path(path))))


def test_a_file_of_another_name_is_no_damaged_onnx_file(inputs: Path) -> None:
    for read in (lambda path: listing.planned_matrices(path, bcq.QuantizeOptions()), doctor.facts):
        error = refused(lambda read=read: read(Path("other/notes.txt")))  # type: ignore[misc]
        assert str(error) == (
            "error[E103]: 'other/notes.txt' is no ONNX model. Give a model folder or an .onnx file."
        )


def test_export_and_quantize_say_it_on_one_line(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "other/notes.txt", "-o", "new"]) == 3
    assert cli.main(["quantize", "out/model.onnx", "-o", "new"]) == 3
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in told] == ["error[E102]"] * 2
    assert not (inputs / "new").exists()
