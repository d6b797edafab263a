# SPDX-License-Identifier: Apache-2.0
"""Small graphs for the decoder without onnxruntime that ask for what is not there, and unusual files."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bcq.errors import BcqError, UnsupportedError, UsageError
from bcq.native.library import OpenDecoder, _Options

WIDE = 1 << 16
ROOM = 4
SIXTEEN = np.arange(16, dtype=np.float32).reshape(1, 4, 4)


def saved(folder: Path, nodes: Sequence[onnx.NodeProto], constants: dict[str, Any]) -> Path:
    """A graph from input_ids to logits."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "tokens", "vocabulary"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def floats(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_a_shape_whose_size_is_no_number_is_refused(tmp_path: Path) -> None:
    constants = {"empty": floats(0), "x": floats(1, 1, 4), "shape": np.array([2**28, 2**36])}
    nodes = [node("Reshape", "empty shape", "huge", allowzero=1), node("Add", "huge huge", "sum")]
    nodes.append(node("Tanh", "x", "logits"))
    with pytest.raises(UnsupportedError, match=r"'huge' \(Reshape\): .*\[268435456, 68719476736\] has more"):
        OpenDecoder(saved(tmp_path, nodes, constants), ROOM)


def test_many_rows_of_nothing_are_refused(tmp_path: Path) -> None:
    constants = {"empty": floats(0), "scale": floats(0), "shape": np.array([2**30, 0])}
    nodes = [node("Reshape", "empty shape", "rows", allowzero=1)]
    nodes.append(node("LayerNormalization", "rows scale", "logits"))
    with pytest.raises(UnsupportedError, match="empty and too large"):
        OpenDecoder(saved(tmp_path, nodes, constants), ROOM)


@pytest.mark.parametrize(
    ("ends", "axis", "token", "shape"),
    [(1, 1, 1, f"[1, 0, {WIDE}]"), (WIDE, 2, 65000, f"[1, 1, {WIDE - 65000}]")],
    ids=["no row", "fewer columns"],
)
def test_logits_whose_shape_follows_from_tokens_are_checked_at_every_step(
    tmp_path: Path, ends: int, axis: int, token: int, shape: str
) -> None:
    x = floats(1, 1, WIDE)
    constants: dict[str, Any] = {
        "x": x,
        "zero": [0],
        "one": [1],
        "all": [-1],
        "ends": [ends],
        "axis": [axis],
    }
    nodes = [node("Reshape", "input_ids all", "ids"), node("Slice", "ids zero one", "first")]
    nodes.append(node("Slice", "x first ends axis", "logits"))
    opened = OpenDecoder(saved(tmp_path, nodes, constants), ROOM)
    with pytest.raises(UsageError) as wrong:
        opened.step([token])
    assert f"output 'logits': got shape {shape}" in wrong.value.message
    assert (opened.seen(), opened.vocabulary) == (0, WIDE)
    np.testing.assert_array_equal(opened.step([0]), x[0, 0])


def means(folder: Path, keepdims: onnx.AttributeProto) -> Path:
    """Logits: 4 rows and what their means add to each, all of them exact."""
    mean = node("ReduceMean", "x axes", "mean")
    mean.attribute.append(keepdims)
    return saved(folder, [mean, node("Add", "x mean", "logits")], {"x": SIXTEEN, "axes": [-1]})


def test_a_number_that_a_writer_left_out_is_zero(tmp_path: Path) -> None:
    zero = helper.make_attribute("keepdims", 0)
    zero.ClearField("i")
    found = OpenDecoder(means(tmp_path, zero), ROOM).step([1])
    np.testing.assert_array_equal(found, (SIXTEEN + SIXTEEN.mean(-1))[0, 3])


@pytest.mark.parametrize("value", [1.0, [1], "1"])
def test_an_attribute_of_another_kind_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"'mean' \(ReduceMean\): attribute 'keepdims': got a"):
        OpenDecoder(means(tmp_path, helper.make_attribute("keepdims", value)), ROOM)


def test_constants_are_told_by_name(tmp_path: Path) -> None:
    file = saved(tmp_path, [node("Tanh", "x", "logits")], {"x": floats(1, 1, 4)})
    model = onnx.load(file)
    model.graph.initializer[0].float_data.extend([1, 2, 3, 4])
    model.graph.initializer[0].ClearField("raw_data")
    onnx.save(model, file)
    with pytest.raises(UnsupportedError, match=r"'logits' .Tanh.: 'x': its data is not in raw_data"):
        OpenDecoder(file, ROOM)


def test_data_without_a_length_ends_with_its_elements(tmp_path: Path) -> None:
    file = saved(tmp_path, [node("Tanh", "x", "logits")], {"x": floats(1, 1, 4)})
    expected = OpenDecoder(file, ROOM).step([1])
    model = onnx.load(file)
    onnx.save_model(model, file, save_as_external_data=True, location="data", size_threshold=0)
    model = onnx.load(file, load_external_data=False)
    for entry in list(model.graph.initializer[0].external_data):
        if entry.key == "length":
            model.graph.initializer[0].external_data.remove(entry)
    onnx.save(model, file)
    np.testing.assert_array_equal(OpenDecoder(file, ROOM).step([1]), expected)


def test_logits_outlive_their_decoder_and_tokens_may_lie_anyhow(tmp_path: Path) -> None:
    nodes = [node("Gather", "table input_ids", "logits")]
    table = floats(8, 5)
    file = saved(tmp_path, nodes, {"table": table})
    logits = OpenDecoder(file, ROOM).step([3])
    np.testing.assert_array_equal(logits, table[3])
    for tokens in (np.array([7, 6, 5])[::-1], np.array([1, 0, 7, 0])[::2]):
        np.testing.assert_array_equal(OpenDecoder(file, ROOM).step(tokens), table[7])


@pytest.mark.parametrize("numbers", [{"room": 0}, {"threads": -1}, {"threads": 1 << 32 | 1}, {"chunk": 9999}])
def test_numbers_out_of_range_and_missing_files_are_told(tmp_path: Path, numbers: dict[str, int]) -> None:
    file = saved(tmp_path, [node("Tanh", "x", "logits")], {"x": floats(1, 1, 4)})
    with pytest.raises(BcqError, match=rf"E202.*{next(iter(numbers))}: got .*, expected 1 to"):
        OpenDecoder(file, **{"room": ROOM, **numbers})
    with pytest.raises(BcqError, match="E101"):
        OpenDecoder(tmp_path / "nothing.onnx", ROOM)


def test_threads_of_the_caller_have_a_number(tmp_path: Path) -> None:
    file = saved(tmp_path, [node("Tanh", "x", "logits")], {"x": floats(1, 1, 4)})
    library = OpenDecoder(file, ROOM)._library
    why = ctypes.create_string_buffer(512)
    options = _Options(ctypes.sizeof(_Options), ROOM, 1, 0, 1)  # some parallel_for, which nobody calls
    assert not library.bcq_decoder_open(bytes(file), ctypes.byref(options), why, 512)
    assert b"threads: got 1 with parallel_for" in why.value
