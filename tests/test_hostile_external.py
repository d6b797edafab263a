# SPDX-License-Identifier: Apache-2.0
"""No model leads a reader out of its own folder, and no output path leads the writer astray."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import bcq
from bcq import runtime
from bcq.checks import external
from bcq.errors import InputError, UsageError
from bcq.export import export
from bcq.files.checkpoint import INDEX, SINGLE, Checkpoint
from bcq.files.safetensors_write import SafetensorsWriter, TensorSpec
from bcq.frontends import onnx_file
from bcq.matrices.plan import QuantizeOptions
from bcq.quantize import check_side_files
from graphs import normal
from hostile.external_data import ATTACKS, edit, good_model

QUICK = QuantizeOptions(bits=2, group_size=32, method="greedy")
CODES = {"E101", "E103", "E108"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return good_model(tmp_path)


def check_clear(fault: InputError) -> None:
    assert fault.code in CODES
    assert "\n" not in fault.message
    assert "model" in fault.message


@pytest.mark.parametrize("name", ATTACKS)
def test_external_data_that_leaves_its_place_is_refused_by_both_readers(path: Path, name: str) -> None:
    ATTACKS[name](path)
    for read in (onnx_file.load, runtime.session):
        with pytest.raises(bcq.BcqError) as caught:
            read(path)
        if name != "in a sparse initializer" or read is runtime.session:  # unsupported before it is hostile
            assert isinstance(caught.value, InputError)
            check_clear(caught.value)


def test_the_good_model_that_the_attacks_start_from_is_read(path: Path) -> None:
    assert onnx_file.load(path).graph.initializers.keys() == {"w", "v"}
    assert runtime.session(path).run(None, {"x": normal(1, 64)})[0].shape == (1, 64)


def test_a_model_in_a_hugging_face_cache_is_read(tmp_path: Path, path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1f2e"
    blobs = tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(path.parent.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert onnx_file.load(snapshot / "model.onnx").graph.initializers["w"].const_value is not None
    for source in (snapshot, snapshot / "model.onnx"):
        assert runtime.session(source).run(None, {"x": normal(1, 64)})[0].shape == (1, 64)
    assert export(snapshot / "model.onnx", tmp_path / "out", QUICK).report.packed_count == 2


@pytest.mark.parametrize("where", ["../../../secret", "../../blobs/../../secret"])
def test_a_snapshot_leads_to_its_blobs_and_nowhere_else(tmp_path: Path, path: Path, where: str) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1f2e"
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    path.parent.rename(snapshot)
    (snapshot / "model.onnx.data").unlink()
    (snapshot / "model.onnx.data").symlink_to(where)
    with pytest.raises(InputError, match="leaves the folder"):
        runtime.session(snapshot)


def test_names_of_one_file_inside_the_folder_are_no_attack(path: Path) -> None:
    os.link(path.with_name("model.onnx.data"), path.with_name("copy"))
    assert runtime.session(path) is not None


def test_a_copy_made_of_hard_links_is_refused_with_the_way_out(tmp_path: Path, path: Path) -> None:
    shutil.copytree(path.parent, tmp_path / "copy", copy_function=os.link)
    with pytest.raises(InputError, match="2 hard links") as caught:
        runtime.session(path)
    assert caught.value.hint.startswith("Give it bytes of its own: cp '")


def test_files_that_an_installer_linked_from_its_cache_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.link(path.with_name("model.onnx.data"), path.parent.parent / "cached")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(path.parent)})
    assert runtime.session(path) is not None


def test_data_that_is_replaced_after_the_check_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = onnxruntime.InferenceSession

    def late(*arguments: Any, **named: Any) -> Any:
        opened = original(*arguments, **named)
        path.with_name("model.onnx.data").rename(path.with_name("away"))
        path.with_name("away").rename(path.with_name("model.onnx.data"))  # and back again
        return opened

    monkeypatch.setattr(onnxruntime, "InferenceSession", late)
    with pytest.raises(InputError, match="was changed while it was read") as caught:
        runtime.session(path)
    assert caught.value.code == "E108"


def test_a_source_that_is_replaced_during_an_export_leaves_no_output(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcq import passes

    original = passes.run

    def late(*arguments: Any, **named: Any) -> Any:
        packed = original(*arguments, **named)
        data = path.with_name("model.onnx.data")
        changed = bytearray(data.read_bytes())
        changed[7] ^= 1
        data.write_bytes(changed)
        return packed

    monkeypatch.setattr(passes, "run", late)
    with pytest.raises(InputError, match="was changed while it was read"):
        export(path, tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"\x08\x0a", b"\x80" * 50, b"\x3a\xff\xff\xff\xff\x0f", b"\x0b"])
def test_bytes_that_are_no_messages_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    if content == b"\x08\x0a":  # a message, but of a model without a graph
        assert list(external.external_tensors(tmp_path / "bad.onnx")) == []
        return
    with pytest.raises(InputError) as caught:
        list(external.external_tensors(tmp_path / "bad.onnx"))
    assert caught.value.code == "E103"


def test_a_model_that_nests_graphs_without_end_is_refused(tmp_path: Path) -> None:
    message = b"location"
    for _ in range(200):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            size, prefix = len(message), b""
            while size > 127:
                prefix, size = prefix + bytes([size & 127 | 128]), size >> 7
            message = tag + prefix + bytes([size]) + message
    size, prefix = len(message), b""
    while size > 127:
        prefix, size = prefix + bytes([size & 127 | 128]), size >> 7
    (tmp_path / "deep.onnx").write_bytes(b"\x3a" + prefix + bytes([size]) + message)
    with pytest.raises(InputError, match="nests graphs"):
        list(external.external_tensors(tmp_path / "deep.onnx"))


def test_a_large_model_is_mapped_and_gives_the_same_places(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = list(external.external_tensors(path))
    monkeypatch.setattr(external, "_MAPPED_BYTES", 0)
    assert list(external.external_tensors(path)) == small != []


# Model folders: each attack puts something that is not the folder's own in the place of a file.


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "tokenizer.json").write_text("{}")
    with SafetensorsWriter(folder / SINGLE, {"w": TensorSpec("F32", (2,))}, {}) as writer:
        writer.write("w", np.ones(2, "<f4").tobytes())
    return folder


def sharded(folder: Path) -> Path:
    checkpoint(folder)
    (folder / SINGLE).rename(folder / "model-1.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "model-1.safetensors"}}))
    return folder


def other_place(file: Path) -> Path:
    """A path outside the model's folder."""
    return next(parent for parent in file.parents if parent.name == "model").with_name("outside")


def outside(file: Path) -> Path:
    shutil.move(file, other_place(file))
    return other_place(file)


def by_symlink(file: Path) -> None:
    file.symlink_to(os.path.relpath(outside(file), file.parent))


def by_absolute_symlink(file: Path) -> None:
    file.symlink_to(outside(file))


def by_hard_link(file: Path) -> None:
    os.link(file, other_place(file))


def by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def by_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def by_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


SWAPS = [by_symlink, by_absolute_symlink, by_hard_link, by_pipe, by_device, by_loop]


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("name", ["config.json", SINGLE, INDEX, "model-1.safetensors"])
def test_a_model_folder_holds_its_own_files(tmp_path: Path, name: str, swap: Callable[[Path], None]) -> None:
    folder = (sharded if "-1" in name or name == INDEX else checkpoint)(tmp_path / "model")
    assert Checkpoint.open(folder).names() == ["w"]
    swap(folder / name)
    with pytest.raises(InputError, match=name) as caught:
        Checkpoint.open(folder)
    assert caught.value.code == "E108"


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "1_Pooling/config.json"])
def test_a_file_that_would_be_copied_is_the_folders_own(
    tmp_path: Path, name: str, swap: Callable[[Path], None]
) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    check_side_files(folder)
    swap(folder / name)
    with pytest.raises(InputError, match=name) as caught:
        check_side_files(folder)
    assert caught.value.code == "E108"


def test_a_folder_of_side_files_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "config.json").write_text('{"token": "secret"}')
    (folder / "1_Pooling").symlink_to("../private")
    with pytest.raises(InputError, match="leaves the folder"):
        check_side_files(folder)


@pytest.mark.parametrize(
    "shard", ["../m.safetensors", "/m.safetensors", "a/m.safetensors", "m.bin", "m.safetensors\0", "..", ""]
)
def test_an_index_names_files_of_its_own_folder(tmp_path: Path, shard: str) -> None:
    folder = sharded(tmp_path / "model")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(InputError, match="names the shard") as caught:
        Checkpoint.open(folder)
    assert caught.value.code == "E108"


# The writer.


def file_in_the_place(path: Path) -> None:
    path.write_text("mine")


def link_to_a_folder(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def pipe_in_the_place(path: Path) -> None:
    os.mkfifo(path)


def folder_of_someone_else(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def export_with_a_link_inside(path: Path) -> None:
    export(path.parent / "model" / "model.onnx", path, QUICK)
    (path / "notes").symlink_to("/etc")


@pytest.mark.parametrize(
    "obstacle",
    [
        file_in_the_place,
        link_to_a_folder,
        link_to_nothing,
        pipe_in_the_place,
        folder_of_someone_else,
        export_with_a_link_inside,
    ],
)
def test_the_writer_replaces_only_its_own_folders(
    path: Path, tmp_path: Path, obstacle: Callable[[Path], None]
) -> None:
    obstacle(tmp_path / "out")
    before = sorted(str(each) for each in tmp_path.rglob("*"))
    with pytest.raises(UsageError) as caught:
        export(path, tmp_path / "out", QUICK)
    assert caught.value.code == "E203"
    assert sorted(str(each) for each in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", ["model", ".", "model/../model"])
def test_the_writer_never_replaces_what_it_reads(path: Path, tmp_path: Path, output: str) -> None:
    with pytest.raises(UsageError) as caught:
        export(path, tmp_path / output, QUICK)
    assert caught.value.code == "E203"
    assert path.is_file()


def test_a_listed_file_that_became_a_link_is_replaced_and_its_target_kept(path: Path, tmp_path: Path) -> None:
    export(path, tmp_path / "out", QUICK)
    (tmp_path / "out" / "model.onnx").unlink()
    (tmp_path / "out" / "model.onnx").symlink_to(tmp_path / "secret")
    before = (tmp_path / "secret").read_bytes()
    export(path, tmp_path / "out", QUICK)
    assert (tmp_path / "secret").read_bytes() == before
    assert not (tmp_path / "out" / "model.onnx").is_symlink()


def test_a_data_name_leads_nowhere(path: Path) -> None:
    edit(path, location="model.onnx.data/x")
    with pytest.raises(InputError):
        onnx_file.load(path)
