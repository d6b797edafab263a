# SPDX-License-Identifier: Apache-2.0
"""The writer aligns, streams, replaces atomically, changes no model and gives the same bytes twice."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bcq.errors import ResourceError
from bcq.exporting.write import ALIGNMENT, FURTHER_ALIGNMENT, MIN_EXTERNAL_BYTES, write_model, write_models
from bcq.frontends import onnx_file
from graphs import bcq_nodes, model_of, normal, pack_with, run_without_library

LINEAR = "main (float[m, 64] x) => (float[m, 64] y) { h = MatMul (x, w) y = Add (h, b) }"


def linear(seed: int = 1) -> ir.Model:
    return model_of(LINEAR, w=normal(64, 64, seed=seed), b=normal(64, seed=9))


def external(path: Path) -> dict[str, dict[str, str]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def test_a_written_model_computes_the_same(tmp_path: Path) -> None:
    model = linear()
    write_model(model, tmp_path / "model.onnx")
    feeds = {"x": normal(3, 64, seed=2)}
    (before,), (after,) = (
        run_without_library(model, feeds),
        run_without_library(tmp_path / "model.onnx", feeds),
    )
    np.testing.assert_array_equal(before, after)


def test_models_of_one_folder_share_a_data_file_that_has_equal_tensors_once(tmp_path: Path) -> None:
    two = "main (float[m, 64] x) => (float[m, 60] y) { h = MatMul (x, w) y = MatMul (h, v) }"
    first = model_of(two, w=normal(64, 64), v=normal(64, 60, seed=2))
    second = model_of(two, w=normal(64, 64), v=normal(64, 60, seed=3))
    write_models({tmp_path / "a.onnx": first, tmp_path / "b.onnx": second})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data", "b.onnx"]
    a, b = external(tmp_path / "a.onnx"), external(tmp_path / "b.onnx")
    assert a["w"] == b["w"]
    assert a["v"] != b["v"]
    assert all(int(place["offset"]) % ALIGNMENT == 0 for place in a.values())
    assert int(b["v"]["offset"]) % FURTHER_ALIGNMENT == 0
    assert (tmp_path / "a.onnx.data").stat().st_size < 4 * (64 * 64 + 2 * 64 * 60) + 2 * ALIGNMENT
    feeds = {"x": normal(3, 64, seed=4)}
    for model, name in ((first, "a.onnx"), (second, "b.onnx")):
        (before,), (after,) = run_without_library(model, feeds), run_without_library(tmp_path / name, feeds)
        np.testing.assert_array_equal(before, after)


def test_large_tensors_lie_outside_at_aligned_offsets_and_small_ones_inside(tmp_path: Path) -> None:
    model = model_of(
        "main (float[n] x) => (float[n] y) { y = Identity (x) }",
        large=normal(100, 30),
        odd=normal(257),
        small=normal(MIN_EXTERNAL_BYTES // 4 - 1),
        exact=normal(MIN_EXTERNAL_BYTES // 4),
        empty=np.zeros((0, 4), np.float32),
    )
    write_model(model, tmp_path / "model.onnx")
    outside = external(tmp_path / "model.onnx")
    assert sorted(outside) == ["exact", "large", "odd"]
    assert all(int(place["offset"]) % ALIGNMENT == 0 for place in outside.values())
    assert {place["location"] for place in outside.values()} == {"model.onnx.data"}
    loaded = onnx.load(tmp_path / "model.onnx")
    for tensor in loaded.graph.initializer:
        original = model.graph.initializers[tensor.name].const_value
        assert original is not None
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), original.numpy())


def test_a_packed_model_survives_the_way_through_disk(tmp_path: Path) -> None:
    model = linear()
    _, source = pack_with(model)
    write_model(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    x = normal(3, 64, seed=2)
    (y,) = run_without_library(tmp_path / "model.onnx", {"x": x})
    np.testing.assert_allclose(y, x @ source.dense["w"].T + normal(64, seed=9), rtol=0, atol=5e-4)
    loaded = onnx_file.load(tmp_path / "model.onnx")
    assert [node.op_type for node in bcq_nodes(loaded)] == ["BcqMatMul"]


def test_writing_changes_nothing_in_the_model(tmp_path: Path) -> None:
    model = linear()
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    names = {name: tensor.name for name, tensor in tensors.items() if tensor is not None}
    before = ir.to_proto(model).SerializeToString()
    for _ in range(2):
        write_model(model, tmp_path / "model.onnx")
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == tensors
    assert {name: tensor.name for name, tensor in tensors.items() if tensor is not None} == names
    assert ir.to_proto(model).SerializeToString() == before


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        model = linear()
        pack_with(model)
        write_model(model, tmp_path / folder / "model.onnx")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_two_initializers_that_share_a_tensor_share_its_bytes(tmp_path: Path) -> None:
    model = model_of(
        "main (float[n] x) => (float[n] y) { y = Identity (x) }", a=normal(64, 64), b=normal(64, 64)
    )
    model.graph.initializers["b"].const_value = model.graph.initializers["a"].const_value
    write_model(model, tmp_path / "model.onnx")
    outside = external(tmp_path / "model.onnx")
    assert outside["a"] == outside["b"]
    assert (tmp_path / "model.onnx.data").stat().st_size == 64 * 64 * 4


def test_strings_and_other_types_are_written_too(tmp_path: Path) -> None:
    constants: dict[str, Any] = {
        "words": np.array(["a", "bc"], dtype=object),
        "half": normal(40, 40, dtype=np.float16),
        "ids": np.arange(1000),
        "flags": np.ones(2000, bool),
    }
    model = model_of("main (float[n] x) => (float[n] y) { y = Identity (x) }", **constants)
    write_model(model, tmp_path / "model.onnx")
    loaded = {tensor.name: tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert list(loaded["words"].string_data) == [b"a", b"bc"]
    for name in ("half", "ids", "flags"):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded[name]), constants[name])


def test_an_external_tensor_is_copied_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write_model(linear(), tmp_path / "one" / "model.onnx")
    write_model(onnx_file.load(tmp_path / "one" / "model.onnx"), tmp_path / "two" / "model.onnx")
    one, two = (tmp_path / name / "model.onnx.data" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_model_replaced_in_place_gets_a_fresh_data_file_named_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_model(linear(seed=1), path)
    old = (tmp_path / "model.onnx.data").read_bytes()
    write_model(onnx_file.load(path), path)  # reads the file that it replaces
    write_model(linear(seed=2), path)
    (place,) = external(path).values()
    assert place["location"].startswith("model-")
    assert (tmp_path / "model.onnx.data").read_bytes() == old


class _Refusing:
    """Fails at the nth call of an operating system function, like a full disk or a signal would."""

    def __init__(self, call: Any, nth: int) -> None:
        self.call, self.left = call, nth

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.call(*arguments, **named)


@pytest.mark.parametrize(
    ("owner", "name", "nth"),
    [(os, "fsync", 1), (os, "fsync", 2), (Path, "replace", 1), (Path, "replace", 2), (os, "open", 1)],
)
def test_a_full_disk_leaves_the_old_or_the_new_model_loadable_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, nth: int
) -> None:
    path = tmp_path / "model.onnx"
    write_model(linear(seed=1), path)
    feeds = {"x": normal(3, 64, seed=2)}
    old, new = (run_without_library(linear(seed), feeds)[0] for seed in (1, 2))
    with monkeypatch.context() as patched:
        original = getattr(owner, name)
        refusing = _Refusing(original, nth)
        patched.setattr(owner, name, lambda *a, **k: refusing(*a, **k))
        with pytest.raises(ResourceError, match="No space left on device") as caught:
            write_model(linear(seed=2), path)
    assert caught.value.code == "E601"
    (now,) = run_without_library(path, feeds)
    assert np.array_equal(now, old) or np.array_equal(now, new)
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix == ".tmp"]


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot write"):
        write_model(linear(), tmp_path / "nowhere" / "model.onnx")


def test_a_lazy_tensor_is_evaluated_when_its_turn_comes_and_not_kept(tmp_path: Path) -> None:
    evaluated = []

    def evaluate(index: int) -> ir.TensorProtocol:
        evaluated.append(index)
        return ir.Tensor(np.full(1000, index, np.float32))

    model = model_of("main (float[n] x) => (float[n] y) { y = Identity (x) }")
    for index in range(3):
        lazy = ir.LazyTensor(
            lambda index=index: evaluate(index),  # type: ignore[misc]
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape([1000]),
            name=f"t{index}",
            cache=False,
        )
        model.graph.register_initializer(ir.Value(name=f"t{index}", const_value=lazy))
    write_model(model, tmp_path / "model.onnx")
    assert evaluated == [0, 1, 2]
