# SPDX-License-Identifier: Apache-2.0
"""The reader maps weights lazily and follows no path that leads out of the model's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bcq.errors import InputError, UnsupportedError
from bcq.exporting.write import write_model
from bcq.frontends import onnx_file
from graphs import model_of, normal
from hostile.external_data import edit

LINEAR = "main (float[m, 64] x) => (float[m, 64] y) { y = MatMul (x, w) }"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good model with its data beside it, in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(model_of(LINEAR, w=normal(64, 64)), folder / "model.onnx")
    (tmp_path / "secret").write_bytes(bytes(64 * 64 * 4))
    return folder / "model.onnx"


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        onnx_file.load(path)
    assert "\n" not in caught.value.message
    assert str(path.name) in caught.value.message
    return caught.value


def test_a_good_model_loads_and_its_weights_are_read_only_when_asked_for(path: Path) -> None:
    model = onnx_file.load(path)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None  # nothing is mapped yet
    np.testing.assert_array_equal(tensor.numpy(), normal(64, 64))


def test_a_model_whose_path_is_relative_or_a_link_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    (Path("alias.onnx")).symlink_to("model.onnx")
    for name in ("model.onnx", "alias.onnx"):
        tensor = onnx_file.load(name).graph.initializers["w"].const_value
        assert tensor is not None
        assert tensor.numpy().shape == (64, 64)


def test_a_data_file_that_is_a_link_inside_the_folder_loads(path: Path) -> None:
    data = path.with_name("model.onnx.data")
    data.rename(path.with_name("blob"))
    data.symlink_to("blob")
    tensor = onnx_file.load(path).graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), normal(64, 64))


def absolute(path: Path) -> None:
    edit(path, location=str(path.parent.parent / "secret"))


def traversal(path: Path) -> None:
    edit(path, location="../secret")


def traversal_inside(path: Path) -> None:
    (path.parent / "sub").mkdir()
    edit(path, location="sub/../../secret")


def windows_traversal(path: Path) -> None:
    edit(path, location="..\\secret")


def windows_drive(path: Path) -> None:
    edit(path, location="C:/secret")


def empty(path: Path) -> None:
    edit(path, location="")


def null_byte(path: Path) -> None:
    edit(path, location="model.onnx.data\0")


def symlink(path: Path) -> None:
    (path.parent / "link").symlink_to("../secret")
    edit(path, location="link")


def symlinked_folder(path: Path) -> None:
    (path.parent / "link").symlink_to("..")
    edit(path, location="link/secret")


def hard_link(path: Path) -> None:
    os.link(path.parent.parent / "secret", path.parent / "hard")
    edit(path, location="hard")


def device(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    edit(path, location="pipe")


def folder(path: Path) -> None:
    (path.parent / "sub").mkdir()
    edit(path, location="sub")


ATTACKS = [
    absolute, traversal, traversal_inside, windows_traversal, windows_drive, empty, null_byte, symlink,
    symlinked_folder, hard_link, device, folder,
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_external_data_that_leaves_the_folder_is_refused(path: Path, attack: Callable[[Path], None]) -> None:
    attack(path)
    fault = refused(path)
    assert fault.code == "E108"
    assert "tensor 'w'" in fault.message


def test_the_same_check_holds_for_tensors_in_nodes_and_branches(path: Path) -> None:
    text = """main (bool c) => (float[2] y) {
        y = If (c) <then_branch = one () => (float[2] a) { a = Identity (p) },
                    else_branch = two () => (float[2] b) { b = Identity (p) }> }"""
    proto = ir.to_proto(model_of(text, p=normal(2)))
    hidden = proto.graph.node[0].attribute[1].g.initializer.add(name="hidden", data_type=1, dims=[2])
    hidden.data_location = onnx.TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="../secret")
    path.write_bytes(proto.SerializeToString())
    assert "tensor 'hidden'" in refused(path).message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"offset": "4096"}, "cut short"),
        ({"offset": "9223372036854775807"}, "cut short"),
        ({"offset": "-1"}, "offset '-1'"),
        ({"offset": "x"}, "offset 'x'"),
        ({"length": "12"}, "says '12' bytes, its shape needs 16384"),
        ({"length": "9" * 19}, "its shape needs 16384"),
        ({"length": "9" * 5000}, "its shape needs 16384"),
    ],
)
def test_places_that_do_not_fit_the_tensor_or_the_file_are_refused(
    path: Path, fields: dict[str, str], expected: str
) -> None:
    edit(path, **fields)
    fault = refused(path)
    assert fault.code == "E103"
    assert expected in fault.message


def test_a_truncated_data_file_is_refused(path: Path) -> None:
    os.truncate(path.with_name("model.onnx.data"), 5000)
    fault = refused(path)
    assert (fault.code, "needs bytes up to 16,384, the file has 5,000" in fault.message) == ("E103", True)


def test_a_missing_data_file_is_named(path: Path) -> None:
    path.with_name("model.onnx.data").unlink()
    fault = refused(path)
    assert (fault.code, "model.onnx.data' is missing" in fault.message) == ("E101", True)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing.onnx").code == "E101"
    (tmp_path / "folder.onnx").mkdir()
    assert refused(tmp_path / "folder.onnx").code == "E101"


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a", bytes(1000), b"\x80" * 50])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    assert refused(tmp_path / "bad.onnx").code == "E103"


def test_every_truncation_of_a_model_is_refused(tmp_path: Path) -> None:
    whole = ir.to_proto(model_of(LINEAR, w=normal(64, 64))).SerializeToString()
    bad = tmp_path / "bad.onnx"
    for length in range(0, len(whole), 97):
        bad.write_bytes(whole[:length])
        assert refused(bad).code == "E103"


@pytest.mark.parametrize(
    ("dims", "data_type", "expected"),
    [
        ([64, 65], 1, "its shape [64, 65] needs 16640"),
        ([2**30, 2**30], 1, "needs 4611686018427387904"),
        ([-1, 64], 1, "has the shape [-1, 64]"),
        ([64, 64], 99, "type 99"),
    ],
)
def test_an_inline_tensor_that_does_not_fit_its_shape_is_refused(
    tmp_path: Path, dims: list[int], data_type: int, expected: str
) -> None:
    proto = ir.to_proto(model_of(LINEAR, w=normal(64, 64)))
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    proto.graph.initializer[0].data_type = data_type
    (tmp_path / "bad.onnx").write_bytes(proto.SerializeToString())
    fault = refused(tmp_path / "bad.onnx")
    assert fault.code == "E103"
    assert expected in fault.message


@pytest.mark.parametrize("kept", [0, 1, 4095])
def test_an_inline_tensor_without_all_its_data_is_refused(tmp_path: Path, kept: int) -> None:
    proto = ir.to_proto(model_of(LINEAR, w=normal(64, 64)))
    proto.graph.initializer[0].ClearField("raw_data")
    proto.graph.initializer[0].float_data.extend([1.0] * kept)
    (tmp_path / "bad.onnx").write_bytes(proto.SerializeToString())
    fault = refused(tmp_path / "bad.onnx")
    assert f"'w' of '{tmp_path / 'bad.onnx'}' has {4 * kept} bytes" in fault.message


def test_a_sparse_initializer_is_unsupported(tmp_path: Path) -> None:
    proto = ir.to_proto(model_of(LINEAR, w=normal(64, 64)))
    sparse = proto.graph.sparse_initializer.add(dims=[64, 64])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(normal(1), "s"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.zeros(1, np.int64)))
    (tmp_path / "sparse.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedError, match="sparse initializers"):
        onnx_file.load(tmp_path / "sparse.onnx")
