# SPDX-License-Identifier: Apache-2.0
"""Reading model folders: every floating type, shards, caches of links, and one clear error for each fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bcq.errors import BcqError
from bcq.files.checkpoint import INDEX, SINGLE, Checkpoint
from bcq.files.safetensors_write import SafetensorsWriter, TensorSpec

DATA = np.arange(6, dtype="<f4").reshape(2, 3) / 4


def folder_with(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "gpt2"}))
    save_file(tensors, folder / SINGLE)
    return folder


def raw_file(folder: Path, header: bytes, data: bytes = b"") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


def refusal(folder: Path) -> BcqError:
    with pytest.raises(BcqError) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.linspace(-3, 3, 12).reshape(3, 4).to(dtype)
    checkpoint = Checkpoint.open(folder_with(tmp_path / "m", {"w": values, "i": torch.arange(3)}))
    np.testing.assert_array_equal(checkpoint.read("w"), values.to(torch.float32).numpy())
    assert checkpoint.shape("w") == (3, 4)
    assert checkpoint.names() == ["i", "w"]
    assert not checkpoint.is_float("i")
    assert checkpoint.raw("i") == np.arange(3, dtype="<i8").tobytes()
    with pytest.raises(BcqError, match="i: got dtype I64"):
        checkpoint.read("i")
    with pytest.raises(BcqError, match="no tensor 'x'"):
        checkpoint.read("x")


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", {"a": torch.ones(2)})
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "model-00002-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))
    checkpoint = Checkpoint.open(folder)
    np.testing.assert_array_equal(checkpoint.read("b"), np.zeros(3, np.float32))
    (folder / INDEX).write_text(json.dumps({"weight_map": {**shards, "c": shards["a"]}}))
    assert refusal(folder).code == "E107"
    (folder / shards["b"]).unlink()
    assert refusal(folder).code == "E107"


def test_a_cache_whose_files_are_links_is_read(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "blobs", {"a": torch.ones(2)})
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert Checkpoint.open(snapshot).names() == ["a"]


@pytest.mark.parametrize("shard", ["../m.safetensors", "/etc/m.safetensors", "a/b.safetensors", "m.bin"])
def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert refusal(tmp_path).code == "E108"


def test_a_missing_folder_is_said_to_be_missing(tmp_path: Path) -> None:
    fault = refusal(tmp_path / "none")
    assert (fault.code, fault.exit_code) == ("E101", 3)
    assert "none does not exist" in fault.message


def test_a_folder_without_config_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "E102"
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        assert refusal(tmp_path).code == "E102"


def test_a_config_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path).code == "E107"


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    fault = refusal(tmp_path)
    assert fault.code == "E104"
    assert "pytorch_model.bin" in fault.message


def test_remote_code_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "x", "auto_map": {"AutoModel": "evil.Model"}}
    assert refusal(folder_with(tmp_path / "m", {"a": torch.ones(1)}, config)).code == "E105"


def test_a_truncated_file_says_what_was_promised_and_what_is_there(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", {"a": torch.ones(1000)})
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[:2000])
    fault = refusal(folder)
    assert fault.code == "E103"
    promised = f"the header promises {len(whole):,} bytes, the file has 2,000."
    assert fault.message == f"model.safetensors is cut short: {promised}"


def entry(**changes: Any) -> bytes:
    described = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}
    return json.dumps({"a": {key: value for key, value in described.items() if value is not None}}).encode()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"", b""),
        (b"{", b""),
        (b"[]", b""),
        (b"\xff", b""),
        (b'{"a":' * 100_000, b""),
        (b'{"__metadata__": {"a": 1}}', b""),
        (b'{"a": 1}', b""),
        (entry()[:-1] + b", " + entry()[1:], bytes(24)),
        (entry(dtype="F31"), bytes(24)),
        (entry(dtype=None), bytes(24)),
        (entry(extra=1), bytes(24)),
        (entry(shape=[2, -3]), bytes(24)),
        (entry(shape=[2.0, 3]), bytes(24)),
        (entry(shape=[True, 6]), bytes(24)),
        (entry(shape=[2**61, 2**61]), bytes(24)),
        (entry(shape=[1] * 17 + [6]), bytes(24)),
        (entry(data_offsets=[0, 20]), bytes(24)),
        (entry(data_offsets=[24, 0]), bytes(24)),
        (entry(data_offsets=[8, 32]), bytes(32)),
        (entry(data_offsets=[0, 24, 48]), bytes(24)),
        (entry(), bytes(25)),
        (entry(), bytes(23)),
    ],
)
def test_each_fault_of_the_header_is_one_error(tmp_path: Path, header: bytes, data: bytes) -> None:
    assert refusal(raw_file(tmp_path, header, data)).code == "E103"


def test_a_file_too_short_for_a_header_or_with_an_endless_one_is_refused(tmp_path: Path) -> None:
    folder = raw_file(tmp_path, b"{}")
    for content in (b"", b"1234567", b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}"):
        (folder / SINGLE).write_bytes(content)
        assert refusal(folder).code == "E103"


def test_a_device_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / SINGLE).symlink_to("/dev/zero")
    assert refusal(tmp_path).code == "E108"


def test_what_the_writer_writes_the_reference_library_reads(tmp_path: Path) -> None:
    specs = {"a": TensorSpec("F32", (2, 3)), "empty": TensorSpec("F16", (0,))}
    with SafetensorsWriter(tmp_path / "m.safetensors", specs, {"k": "1"}) as writer:
        writer.write("a", DATA.tobytes())
        writer.write("empty", b"")
        writer.replace_metadata({"k": "2"})
    loaded = load_file(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded["a"].numpy(), DATA)
    assert loaded["empty"].shape == (0,)


def test_the_writer_refuses_another_order_size_or_number_of_tensors(tmp_path: Path) -> None:
    specs = {"a": TensorSpec("F32", (1,)), "b": TensorSpec("F32", (1,))}
    writer = SafetensorsWriter(tmp_path / "m", specs, {})
    with pytest.raises(ValueError, match="got tensor 'b', expected 'a'"):
        writer.write("b", bytes(4))
    with pytest.raises(ValueError, match="a: got 5 bytes, expected 4"):
        writer.write("a", bytes(5))
    with pytest.raises(ValueError, match="header"):
        writer.replace_metadata({"k": "longer"})
    writer.write("a", bytes(4))
    with pytest.raises(ValueError, match="1 tensors were not written, first 'b'"):
        writer.__exit__(None, None, None)
