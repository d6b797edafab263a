# SPDX-License-Identifier: Apache-2.0
"""The operators inside onnxruntime: results, shapes, types, threads, run-time factors, many sessions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bcq import contract
from bcq.kernels.core import Core
from bcq.packing import pack
from bcq.runtime import default_options, library_path, register_library
from nodes import activations, magnitudes, one_node, open_session, product, random_weight, run_node

CORE = Core.load()
MATMUL = contract.MATMUL
GATHER = contract.GATHER


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group_size", [32, 128, 257])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_matmul_in_onnxruntime_gives_the_bits_of_the_selected_kernel(
    bits: int, group_size: int, dtype: Any
) -> None:
    weight = random_weight(50, 257, bits, group_size, offset=bits % 2 == 0)
    a = activations(3, 257, dtype)
    y = run_node(one_node(MATMUL, weight, dtype), {"A": a[None]})
    assert y.dtype == dtype
    assert y.tobytes() == CORE.matmul(a, pack(weight)).tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (17,), (2, 3), (2, 0, 3), (1, 2, 1, 2, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_matmul_takes_activations_of_any_rank_and_of_no_rows(shape: tuple[int, ...], dtype: Any) -> None:
    weight = random_weight(33, 64, 2, 32)
    a = activations(int(np.prod(shape)), 64, dtype).reshape(*shape, 64)
    y = run_node(one_node(MATMUL, weight, dtype, dims=tuple(f"d{i}" for i in range(len(shape)))), {"A": a})
    assert y.shape == (*shape, 33)
    flat = a.reshape(-1, 64)
    # Near-exact default: 1e-4 of the magnitude is far above it, and far below one wrong bit (64 inputs: 3 %).
    assert (np.abs(y.reshape(-1, 33) - product(flat, weight)) <= 1e-3 * magnitudes(flat, weight)).all()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_gather_in_onnxruntime_equals_the_oracle_to_the_bit(bits: int, dtype: Any) -> None:
    weight = random_weight(50, 100, bits, 32, offset=bits % 2 == 1)
    indices = np.array([[0, 49, -1], [-50, 7, 7]], dtype)
    y = run_node(one_node(GATHER, weight, dtype, ("a", "b")), {"indices": indices})
    assert y.dtype == np.float32
    assert y.tobytes() == weight.dequantize()[indices].tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 2, 3, 1)])
def test_gather_takes_indices_of_any_rank_and_none_at_all(shape: tuple[int, ...]) -> None:
    weight = random_weight(20, 40, 3, 40)
    indices = np.full(shape, 5, np.int64)
    y = run_node(
        one_node(GATHER, weight, np.int64, tuple(f"d{i}" for i in range(len(shape)))), {"indices": indices}
    )
    assert y.shape == (*shape, 40)
    assert (y == weight.dequantize()[5]).all()


@pytest.mark.parametrize("index", [20, -21, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_an_index_outside_the_matrix_is_refused_by_value_and_position(index: int, dtype: Any) -> None:
    session = open_session(one_node(GATHER, random_weight(20, 40, 3, 32), dtype, ("n",)))
    with pytest.raises(
        Exception, match=rf"BcqGather 'the_node': indices: got {index} at position 2, .*-20 to 19"
    ):
        session.run(None, {"indices": np.array([0, 19, index], dtype)})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_threads_do_not_change_a_bit(dtype: Any) -> None:
    weight = random_weight(2000, 512, 3, 128, offset=True)
    model = one_node(MATMUL, weight, dtype, ("m",))
    a = activations(9, 512, dtype)
    one = run_node(model, {"A": a}, threads=1)
    for threads in (2, 3, 8):
        session = open_session(model, threads)
        for _ in range(5):
            assert np.asarray(session.run(None, {"A": a})[0]).tobytes() == one.tobytes()
    for row in (0, 4, 8):
        assert run_node(model, {"A": a[row : row + 1]}).tobytes() == one[row].tobytes()


def test_scaling_factors_can_be_fed_with_every_run() -> None:
    first = random_weight(50, 100, 3, 32, offset=True, seed=1)
    second = random_weight(50, 100, 3, 32, offset=True, seed=2)
    a = activations(3, 100)
    names = ("alpha_1", "alpha_rest", "offset")
    session = open_session(one_node(MATMUL, first, dims=("m",), fed=names))
    for factors in (first, second, first):
        mixed = type(first)(first.words, factors.alpha, factors.offset, 100, 32)
        fed = {name: pack(mixed).tensors()[name] for name in names}
        y = np.asarray(session.run(None, {"A": a, **fed})[0])
        assert y.tobytes() == CORE.matmul(a, pack(mixed)).tobytes()


def test_an_overridable_alpha_falls_back_to_its_default() -> None:
    first = random_weight(50, 100, 2, 32, seed=1)
    other = pack(random_weight(50, 100, 2, 32, seed=2)).alpha_1
    model = one_node(MATMUL, first, dims=("m",))
    alpha = next(tensor for tensor in model.graph.initializer if tensor.name == "alpha_1")
    slot = model.graph.input.add()
    slot.name = "alpha_1"
    slot.type.tensor_type.elem_type = alpha.data_type
    for size in alpha.dims:
        slot.type.tensor_type.shape.dim.add().dim_value = size
    session = open_session(model)
    a = activations(3, 100)
    default = np.asarray(session.run(None, {"A": a})[0])
    swapped = np.asarray(session.run(None, {"A": a, "alpha_1": other})[0])
    assert default.tobytes() == CORE.matmul(a, pack(first)).tobytes()
    assert swapped.tobytes() != default.tobytes()
    assert np.asarray(session.run(None, {"A": a})[0]).tobytes() == default.tobytes()


@pytest.mark.parametrize(
    ("op", "first", "dims", "expected"),
    [
        (MATMUL, np.float32, ("batch", "sequence"), ["batch", "sequence", 50]),
        (MATMUL, np.float16, ("batch", 3), ["batch", 3, 50]),
        (MATMUL, np.float32, (4, 7), [4, 7, 50]),
        (MATMUL, np.float32, (), [50]),
        (GATHER, np.int64, ("batch", "sequence"), ["batch", "sequence", 64]),
        (GATHER, np.int32, (3,), [3, 64]),
    ],
)
def test_shapes_are_inferred_with_the_names_of_dynamic_dimensions(
    op: contract.Op, first: Any, dims: tuple[Any, ...], expected: list[Any]
) -> None:
    model = one_node(op, random_weight(50, 64, 2, 32), first, dims)
    shape = open_session(model).get_outputs()[0].shape
    unknown = (None, -1)
    assert [None if size in unknown else size for size in shape] == expected


@pytest.mark.parametrize("dims", [(None, None), ("batch", None), ("batch", "sequence"), (2, 3)])
def test_a_shape_that_is_computed_from_an_output_is_right_whatever_is_known_of_it(
    dims: tuple[Any, ...],
) -> None:
    """onnxruntime folds such chains when a session is made; an unnamed dimension must not count as -1."""
    model = one_node(MATMUL, random_weight(64, 64, 2, 32), dims=dims)
    chain = [
        helper.make_node("Shape", ["Y"], ["leading"], start=0, end=2),
        helper.make_node("Concat", ["leading", "heads"], ["target"], axis=0),
        helper.make_node("Reshape", ["Y", "target"], ["Z"]),
    ]
    model.graph.node.extend(chain)
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 16]), "heads"))
    model.graph.output[0].name = "Z"
    a = activations(6, 64).reshape(2, 3, 64)
    assert run_node(model, {"A": a}).shape == (2, 3, 4, 16)


@pytest.mark.parametrize("outside", [True, False])
def test_matmul_runs_inside_a_branch_with_weights_inside_or_outside_of_it(outside: bool) -> None:
    weight = random_weight(50, 100, 3, 32, offset=True)
    inner = one_node(MATMUL, weight, dims=("m",)).graph
    result = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["m", 50])]
    then = helper.make_graph(inner.node, "then", [], result, [] if outside else inner.initializer)
    other = helper.make_graph([helper.make_node("Identity", ["B"], ["Y"])], "other", [], result)
    choice = helper.make_node("If", ["choice"], ["Z"], then_branch=then, else_branch=other)
    inputs = [helper.make_tensor_value_info("choice", TensorProto.BOOL, []), *inner.input]
    inputs.append(helper.make_tensor_value_info("B", TensorProto.FLOAT, ["m", 50]))
    outputs = [helper.make_tensor_value_info("Z", TensorProto.FLOAT, ["m", 50])]
    graph = helper.make_graph([choice], "g", inputs, outputs, inner.initializer if outside else [])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(contract.DOMAIN, 1)]
    a = activations(2, 100)
    feeds = {"choice": np.array(True), "A": a, "B": np.zeros((2, 50), np.float32)}
    y = run_node(helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds)
    assert y.tobytes() == CORE.matmul(a, pack(weight)).tobytes()


def test_two_sessions_of_one_process_keep_their_own_weights() -> None:
    a = activations(2, 64)
    weights = [random_weight(48, 64, 3, 32, seed=seed) for seed in (1, 2)]
    sessions = [open_session(one_node(MATMUL, weight, dims=("m",))) for weight in weights]
    for _ in range(2):
        for session, weight in zip(sessions, weights, strict=True):
            assert (
                np.asarray(session.run(None, {"A": a})[0]).tobytes() == CORE.matmul(a, pack(weight)).tobytes()
            )


def test_registering_twice_and_from_a_second_copy_of_the_library_changes_nothing(tmp_path: Path) -> None:
    copy = Path(shutil.copy(library_path(), tmp_path / "second.so"))
    weight = random_weight(48, 64, 3, 32)
    a = activations(2, 64)
    for order in ([library_path()] * 2, [library_path(), copy], [copy, library_path()]):
        options = default_options()
        for path in order:
            options.register_custom_ops_library(str(path))
        session = ort.InferenceSession(one_node(MATMUL, weight, dims=("m",)).SerializeToString(), options)
        assert np.asarray(session.run(None, {"A": a})[0]).tobytes() == CORE.matmul(a, pack(weight)).tobytes()


def test_many_sessions_come_and_go() -> None:
    model = one_node(MATMUL, random_weight(48, 64, 3, 32), dims=("m",)).SerializeToString()
    a = activations(2, 64)
    expected = None
    for _ in range(50):
        options = default_options()
        register_library(options)
        y = np.asarray(ort.InferenceSession(model, options).run(None, {"A": a})[0]).tobytes()
        assert expected in (None, y)
        expected = y
