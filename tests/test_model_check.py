# SPDX-License-Identifier: Apache-2.0
"""The check before a session reads any bytes, and its reader sees what the ``onnx`` package sees."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcq.checks.model import check_model
from bcq.checks.onnx_wire import Message, WireError
from bcq.errors import InputError
from hostile.subjects import matmul

HEALTHY = matmul().model().SerializeToString()


def checked(data: bytes) -> str:
    """What the check says of a file: an error's text, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        try:
            check_model(path)
        except InputError as error:
            text = str(error)
        else:
            text = ""
    assert text == "" or text.startswith(("error[E103]: ", "error[E109]: "))
    assert "\n" not in text
    return text


def test_a_healthy_model_passes_and_an_empty_file_does_not() -> None:
    assert checked(HEALTHY) == ""
    assert "this file is empty" in checked(b"")


def test_the_reader_sees_nodes_attributes_and_tensors_as_onnx_does() -> None:
    proto = onnx.ModelProto.FromString(HEALTHY)
    graph = Message(HEALTHY).merged(7)
    (node,) = graph.messages(1)
    assert node.texts(1) == list(proto.graph.node[0].input)
    attributes = {entry.text(1): entry.number(3) for entry in node.messages(5) if entry.number(20) == 2}
    assert attributes == {a.name: a.i for a in proto.graph.node[0].attribute if a.type == 2}
    for seen, tensor in zip(graph.messages(5), proto.graph.initializer, strict=True):
        assert (seen.text(8), seen.numbers(1)) == (tensor.name, list(tensor.dims))
        assert bytes(seen.views(9)[0]) == tensor.raw_data


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_integers_are_read_with_their_sign_whether_packed_or_not(values: list[int]) -> None:
    tensor = onnx.TensorProto(dims=values)
    assert Message(tensor.SerializeToString()).numbers(1) == values
    packed = onnx.AttributeProto(ints=values)
    assert Message(packed.SerializeToString()).numbers(8) == values


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_by_one_error(data: bytes) -> None:
    checked(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_to_a_healthy_model_is_read_or_refused_by_one_error(data: st.DataObject) -> None:
    damaged = bytearray(HEALTHY)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    checked(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    checked(bytes(damaged))


@pytest.mark.parametrize("data", [b"\x08", b"\x0a\x05ab", b"\x0b", b"\x80" * 11, b"\x0d\x00", b"\x0f"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        Message(data)


def test_graphs_that_lie_too_deep_in_each_other_are_refused() -> None:
    graph = onnx.GraphProto(name="inner")
    data = graph.SerializeToString()
    for _ in range(200):  # the package onnx itself refuses to build this many
        attribute = b"\x32" + _length(data) + data
        node = b"\x2a" + _length(attribute) + attribute
        data = b"\x0a" + _length(node) + node
    assert "graphs lie more than 32 deep" in checked(b"\x3a" + _length(data) + data)


def _length(data: bytes) -> bytes:
    size, text = len(data), b""
    while size > 127:
        text += bytes([size & 127 | 128])
        size >>= 7
    return text + bytes([size])
