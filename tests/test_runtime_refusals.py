# SPDX-License-Identifier: Apache-2.0
"""A malformed node is refused when the session is made, by a message that names node and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bcq import contract
from bcq.packing import pack
from nodes import activations, one_node, open_session, random_weight

WEIGHT = random_weight(50, 100, 3, 32, offset=True)
TENSORS = pack(WEIGHT).tensors()
BOTH = pytest.mark.parametrize("op", [contract.MATMUL, contract.GATHER], ids=lambda op: op.name)


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(Exception, match=r".") as caught:
        open_session(model)
    return str(caught.value)


def first_type(op: contract.Op) -> Any:
    return np.float32 if op.name == contract.MATMUL.name else np.int64


def check_named(message: str, op: contract.Op, field: str) -> None:
    assert f"{op.name} 'the_node': " in message
    assert field in message
    assert "expected" in message


BAD_ATTRIBUTES = [
    *[("bits", value) for value in (0, -1, 4, 9, 2**31, 2**63 - 1, None, 3.0, "3", [3])],
    *[("K", value) for value in (0, -1, 2**31, 2**62, None)],
    *[("N", value) for value in (0, -1, 15, 2**31, 2**62, None)],
    *[("group_size", value) for value in (0, -32, 1, 31, 33, 64, 99, 128, 2**31, 2**62, -(2**63), None)],
    *[("format_version", value) for value in (0, 2, 2**31, None)],
    *[("layout", value) for value in ("tile32", "", "x" * 1000, None, 16)],
    *[("code_hash", value) for value in ("", "0" * 63, "G" * 64, "AB" * 32, "\n" * 64, None)],
]


@BOTH
@pytest.mark.parametrize(("field", "value"), BAD_ATTRIBUTES, ids=lambda x: str(x)[:20])
def test_a_bad_attribute_is_refused_by_name(op: contract.Op, field: str, value: Any) -> None:
    message = refusal(one_node(op, WEIGHT, first_type(op), change={field: value}))
    if field in ("bits", "K", "N", "group_size") and "shape" in message:
        field = "shape"  # a value that is valid by itself but does not fit the tensors
    check_named(message, op, field)


@BOTH
def test_a_k_that_cuts_inputs_off_is_refused_because_their_bits_become_padding(op: contract.Op) -> None:
    message = refusal(one_node(op, WEIGHT, first_type(op), change={"K": 99}))
    check_named(message, op, "codes padding: got a set bit")
    assert "input 99, expected zero" in message


def test_a_k_that_differs_from_the_declared_activation_is_refused() -> None:
    message = refusal(one_node(contract.MATMUL, WEIGHT, change={"K": 101}))
    check_named(message, contract.MATMUL, "A shape: got [100], expected [..., 101]")


@pytest.mark.parametrize("value", [-1, 5, 2**40, None])
def test_a_bad_accuracy_level_is_refused(value: int | None) -> None:
    message = refusal(one_node(contract.MATMUL, WEIGHT, change={"accuracy_level": value}))
    check_named(message, contract.MATMUL, "accuracy_level")


def test_a_newer_format_says_that_the_library_must_be_updated() -> None:
    message = refusal(one_node(contract.MATMUL, WEIGHT, change={"format_version": 3}))
    assert "newer than this library: update onnx-bcq" in message


def wrong_shapes(name: str) -> list[tuple[int, ...]]:
    shape = TENSORS[name].shape
    wrong: list[tuple[int, ...]] = [(), (0,), (int(np.prod(shape)),), (1, *shape)]
    for axis, size in enumerate(shape):
        wrong += [(*shape[:axis], other, *shape[axis + 1 :]) for other in (0, size - 1, size + 1)]
    valid_empty = name == "offset"
    return [case for case in wrong if not (valid_empty and case == (0,))]


@BOTH
@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name in TENSORS for shape in wrong_shapes(name)], ids=str
)
def test_a_tensor_of_the_wrong_shape_is_refused_by_name(
    op: contract.Op, name: str, shape: tuple[int, ...]
) -> None:
    wrong = np.zeros(shape, TENSORS[name].dtype)
    check_named(refusal(one_node(op, WEIGHT, first_type(op), tensors={name: wrong})), op, f"{name} shape")


@BOTH
@pytest.mark.parametrize("name", list(TENSORS))
def test_a_missing_tensor_is_refused(op: contract.Op, name: str) -> None:
    assert f"'{name}'" in refusal(one_node(op, WEIGHT, first_type(op), tensors={name: None}))


@BOTH
@pytest.mark.parametrize("name", list(TENSORS))
@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_a_tensor_of_the_wrong_type_is_refused(op: contract.Op, name: str, dtype: Any) -> None:
    wrong = TENSORS[name].astype(dtype)
    assert "the_node" in refusal(one_node(op, WEIGHT, first_type(op), tensors={name: wrong}))


@BOTH
def test_codes_that_are_fed_at_run_time_are_refused(op: contract.Op) -> None:
    message = refusal(one_node(op, WEIGHT, first_type(op), fed=("codes",)))
    check_named(message, op, "codes: got a tensor that is fed at run time")


@BOTH
@pytest.mark.parametrize(
    ("where", "row", "least_input"),
    [((3, 0, 0, 2), 50, 0), ((3, 3, 2, 15), 63, 96), ((0, 3, 0, 0), 0, 100), ((2, 3, 2, 7), 39, 100)],
)
def test_a_set_padding_bit_is_refused_by_row_and_input(
    op: contract.Op, where: tuple[int, ...], row: int, least_input: int
) -> None:
    codes = TENSORS["codes"].copy()
    codes[where] |= np.uint32(1 << 31)
    message = refusal(one_node(op, WEIGHT, first_type(op), tensors={"codes": codes}))
    check_named(message, op, "codes padding")
    found = message.split("a set bit at row ")[1]
    assert int(found.split(",")[0]) == row
    assert int(found.split("input ")[1].split(",")[0]) >= least_input


@pytest.mark.parametrize("name", ["alpha_1", "alpha_rest", "offset"])
def test_run_time_factors_of_the_wrong_shape_are_refused_at_each_run(name: str) -> None:
    session = open_session(one_node(contract.MATMUL, WEIGHT, dims=("m",), fed=(name,)))
    a = activations(2, 100)
    right = TENSORS[name]
    assert np.isfinite(np.asarray(session.run(None, {"A": a, name: right})[0])).all()
    for shape in wrong_shapes(name):
        with pytest.raises(Exception, match=rf"BcqMatMul 'the_node': {name} shape: got .* expected"):
            session.run(None, {"A": a, name: np.zeros(shape, right.dtype)})


def test_an_activation_with_another_last_dimension_is_refused_at_each_run() -> None:
    model = one_node(contract.MATMUL, WEIGHT, dims=())
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.ClearField("shape")
    session = open_session(model)
    for shape in ((), (99,), (100, 1), (2, 101), (3, 0)):
        with pytest.raises(Exception, match=r"BcqMatMul 'the_node': A shape: got .*expected \[\.\.\., 100\]"):
            session.run(None, {"A": np.zeros(shape, np.float32)})


def test_activations_of_an_unregistered_type_are_refused() -> None:
    assert "the_node" in refusal(one_node(contract.MATMUL, WEIGHT, np.float64))


def test_a_node_name_with_control_characters_is_shown_without_them() -> None:
    model = one_node(contract.MATMUL, WEIGHT, change={"bits": 9})
    model.graph.node[0].name = "a\x1b[2Jb\nc"
    message = refusal(model)
    assert "'a?[2Jb?c'" in message


@pytest.mark.parametrize("name", ["codes", "alpha_1", "alpha_rest", "offset"])
def test_external_data_at_an_odd_address_is_refused(name: str, tmp_path: Path) -> None:
    model = one_node(contract.MATMUL, WEIGHT)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    (tmp_path / "data").write_bytes(b"\0" + tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "data", offset=1, length=len(tensor.raw_data))
    tensor.ClearField("raw_data")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match=f"{name} address: got 1 bytes beyond"):
        open_session(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["alpha_1", "alpha_rest", "offset"])
def test_run_time_factors_of_a_gather_are_checked_at_each_run(name: str) -> None:
    session = open_session(one_node(contract.GATHER, WEIGHT, np.int64, ("i",), fed=(name,)))
    indices, right = np.array([0, 49, -50]), TENSORS[name]
    assert np.isfinite(np.asarray(session.run(None, {"indices": indices, name: right})[0])).all()
    for shape in wrong_shapes(name):
        with pytest.raises(Exception, match=rf"BcqGather 'the_node': {name} shape: got .* expected"):
            session.run(None, {"indices": indices, name: np.zeros(shape, right.dtype)})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
def test_run_time_factors_of_another_type_are_refused(dtype: Any) -> None:
    session = open_session(one_node(contract.MATMUL, WEIGHT, dims=("m",), fed=("alpha_1",)))
    with pytest.raises(Exception, match=r"input data type.*expected: \(tensor\(float16\)\)"):
        session.run(None, {"A": activations(2, 100), "alpha_1": TENSORS["alpha_1"].astype(dtype)})


@BOTH
@pytest.mark.parametrize("name", ["first", "alpha_1", "alpha_rest", "offset"])
def test_fed_tensors_at_an_odd_address_are_refused(op: contract.Op, name: str) -> None:
    first = op.inputs[0].name
    fed = TENSORS.keys() - {"codes"}
    session = open_session(one_node(op, WEIGHT, first_type(op), ("m",), fed=tuple(sorted(fed))))
    start = activations(2, 100) if op.name == contract.MATMUL.name else np.array([0, 49, -50])
    feeds = {first: start, **{key: TENSORS[key] for key in fed}}
    wrong = first if name == "first" else name
    binding, kept = session.io_binding(), []
    for key, value in feeds.items():
        room = np.zeros(value.nbytes + 16, np.uint8)
        begin = -room.ctypes.data % 8 + (1 if key == wrong else 0)
        room[begin : begin + value.nbytes] = np.frombuffer(value.tobytes(), np.uint8)
        kept.append(room)
        binding.bind_input(key, "cpu", 0, value.dtype, value.shape, room.ctypes.data + begin)
    binding.bind_output("Y", "cpu")
    with pytest.raises(Exception, match=rf"{op.name} 'the_node': {wrong} address: got 1 bytes beyond"):
        session.run_with_iobinding(binding)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_run_time_factor_that_is_not_finite_reaches_its_own_output_and_no_other(value: float) -> None:
    session = open_session(one_node(contract.MATMUL, WEIGHT, dims=("m",), fed=("alpha_1",)))
    a, wrong = activations(3, 100), TENSORS["alpha_1"].copy()
    right = np.asarray(session.run(None, {"A": a, "alpha_1": wrong})[0])
    wrong[1, 2, 5] = value  # tile 1, group 2, row 5 of the tile
    y = np.asarray(session.run(None, {"A": a, "alpha_1": wrong})[0])
    assert not np.isfinite(y[:, 16 + 5]).any()
    others = np.arange(50) != 16 + 5
    assert y[:, others].tobytes() == right[:, others].tobytes()
