# SPDX-License-Identifier: Apache-2.0
"""Every changed bit of an output folder is found, by command, by function and at load."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq.cli import main
from bcq.errors import InputError
from bcq.files import manifest
from bcq.files.integrity import check_integrity, require_files
from hostile import flips


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    flips.make(root)
    return root


@pytest.fixture
def export(made: Path, tmp_path: Path) -> Path:
    return copy(made / "graph", tmp_path / "graph")


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    return copy(made / "base", tmp_path / "base")


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_what_was_written_is_intact(export: Path, base: Path) -> None:
    assert check_integrity(export).to_dict() == {"ok": True, "files": 4, "matrices": 2, "faults": []}
    found = check_integrity(base)
    assert (found.ok, found.faults) == (True, [])
    assert found.matrices == len(bcq.QuantizedBase.open(base).names())


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "bcq_report.json"])
def test_any_flipped_bit_of_an_export_is_found_and_its_file_named(export: Path, name: str) -> None:
    size = (export / name).stat().st_size
    for bit in random.Random(0).sample(range(8 * size), 40):
        flip(export / name, bit)
        assert check_integrity(export).faults == [f"{name} has other content than when it was written."]
        flip(export / name, bit)
    assert check_integrity(export).ok


def test_any_change_of_the_manifest_itself_is_found(export: Path) -> None:
    size = (export / manifest.NAME).stat().st_size
    for bit in random.Random(0).sample(range(8 * size), 200):
        flip(export / manifest.NAME, bit)
        with pytest.raises(InputError) as caught:
            require_files(export)
        assert caught.value.code == "E109"
        flip(export / manifest.NAME, bit)


@pytest.mark.parametrize("kind", ["graph", "base"])
def test_changed_codes_are_found_under_a_new_manifest_too(export: Path, base: Path, kind: str) -> None:
    folder = {"graph": export, "base": base}[kind]
    if kind == "graph":
        flip(folder / "model.onnx.data", 5)  # the first tensor of the file is codes
    else:
        codes = bcq.QuantizedBase.open(folder).checkpoint.entry("embeddings.word_embeddings.weight.codes")
        flip(codes.file, 8 * codes.offset + 3)
    manifest.write_manifest(folder, ["bcq"], 0)
    found = check_integrity(folder)
    assert not found.ok
    assert "hash" in found.faults[0]


@pytest.mark.parametrize("change", ["missing", "longer", "unlisted"])
def test_files_that_come_or_go_are_found(export: Path, change: str) -> None:
    if change == "missing":
        (export / "model.onnx.data").unlink()
    elif change == "longer":
        (export / "model.onnx.data").write_bytes((export / "model.onnx.data").read_bytes() + b"x")
    else:
        (export / "model.onnx.data2").write_bytes(b"")
    (fault,) = check_integrity(export).faults
    assert fault.startswith("model.onnx.data")


def test_a_folder_without_manifest_or_no_folder_is_refused(export: Path, tmp_path: Path) -> None:
    (export / manifest.NAME).unlink()
    for folder, code in ((export, "E109"), (tmp_path / "nothing", "E101")):
        with pytest.raises(InputError) as caught:
            check_integrity(folder)
        assert caught.value.code == code


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", '{"files": {"a": []}}', "\x00", "1" * 5000])
def test_a_manifest_that_is_none_is_refused(export: Path, content: str) -> None:
    (export / manifest.NAME).write_text(content)
    with pytest.raises(InputError, match=manifest.NAME) as caught:
        check_integrity(export)
    assert caught.value.code == "E109"


def test_a_session_checks_every_byte_when_asked(export: Path) -> None:
    assert bcq.session(export, verify=True) is not None
    flip(export / "model.onnx.data", 5)
    assert bcq.session(export) is not None  # nobody asked
    with pytest.raises(InputError, match=r"model\.onnx\.data has other content") as caught:
        bcq.session(export, verify=True)
    assert caught.value.code == "E109"


def test_the_command_says_what_differs_with_exit_code_3(
    export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(export), "--integrity"]) == 0
    assert capsys.readouterr().out == (
        "integrity     ok: 4 files and the codes of 2 matrices are as they were written\n"
    )
    flip(export / "model.onnx.data", 5)
    (export / "bcq_report.json").unlink()
    assert main(["verify", str(export), "--integrity", "--quiet"]) == 3
    assert capsys.readouterr().out == (
        "integrity     FAILED: bcq_report.json is missing.\n"
        "              model.onnx.data has other content than when it was written.\n"
    )
    assert main(["verify", str(export), "--integrity", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], len(told["faults"])) == (False, 2)
    assert main(["verify", str(export), "--integrity", "--per-layer"]) == 2


def test_flips_and_truncations_crash_nothing_and_are_all_seen() -> None:
    counts = flips.run(40)
    assert sum(counts.values()) == 40
    assert {outcome for _, outcome in counts} == {"seen"}


def test_an_adapter_is_intact_until_one_of_its_bits_changes(made: Path, tmp_path: Path) -> None:
    adapter = copy(made / "adapter", tmp_path / "adapter")
    assert check_integrity(adapter).to_dict() == {"ok": True, "files": 2, "matrices": 0, "faults": []}
    flip(
        adapter / "adapter_model.safetensors", 8 * (adapter / "adapter_model.safetensors").stat().st_size - 1
    )
    assert check_integrity(adapter).faults == [
        "adapter_model.safetensors has other content than when it was written."
    ]
    (adapter / "MANIFEST.json").unlink()
    with pytest.raises(InputError, match="E109"):
        check_integrity(adapter)
