# SPDX-License-Identifier: Apache-2.0
"""The functions decode exactly what the NumPy oracle decodes, in ONNX Runtime and in onnx.reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bcq import contract
from bcq.bcq import BcqWeight
from bcq.exporting import functions
from bcq.packing import pack
from graphs import FLOAT16_RELATIVE, FLOAT32_TOLERANCE, random_weight, run_without_library

OPSETS = (13, 15, 18, 21)
RAGGED = [  # N, K, q, g, offset: tails in rows and inputs, one group, groups that do not divide K
    (1, 1, 1, 1, False),
    (5, 70, 1, 32, True),
    (17, 33, 2, 33, False),
    (40, 96, 3, 64, True),
    (16, 32, 4, 32, False),
    (31, 100, 5, 128, False),
    (3, 65, 6, 64, True),
    (20, 64, 7, 32, False),
    (18, 90, 8, 32, True),
]


def one_node(
    op: contract.Op, weight: BcqWeight, first_type: int, rank: int, opset: int = 18
) -> onnx.ModelProto:
    """A model with one operator and the functions beside it."""
    packed = pack(weight)
    values: dict[str, Any] = {
        "format_version": contract.FORMAT_VERSION,
        "layout": contract.LAYOUT,
        "bits": weight.bits,
        "K": weight.inputs,
        "N": weight.rows,
        "group_size": weight.group_size,
        "code_hash": packed.code_hash(),
        "accuracy_level": 0,
    }
    node = helper.make_node(
        op.name,
        [port.name for port in op.inputs],
        ["Y"],
        domain=contract.DOMAIN,
        **{name: values[name] for name in op.attributes},
    )
    gather = op is contract.GATHER
    result = helper.make_tensor_value_info(
        "Y", TensorProto.FLOAT if gather else first_type, [f"y{axis}" for axis in range(rank + gather)]
    )
    argument = helper.make_tensor_value_info(op.inputs[0].name, first_type, [f"x{i}" for i in range(rank)])
    constants = [numpy_helper.from_array(array, name) for name, array in packed.tensors().items()]
    graph = helper.make_graph([node], "one", [argument], [result], constants)
    activation = ir.DataType.FLOAT if gather else ir.DataType(first_type)
    model = helper.make_model(
        graph,
        ir_version=10,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(contract.DOMAIN, 1)],
        functions=[ir.serde.serialize_function(f) for f in functions.functions(opset, activation)],
    )
    onnx.checker.check_model(model)
    return model


def both(model: onnx.ModelProto, argument: NDArray[Any]) -> list[NDArray[Any]]:
    """The result of ONNX Runtime without the library, and of the reference evaluator."""
    feeds = {model.graph.input[0].name: argument}
    reference = ReferenceEvaluator(model).run(None, feeds)
    assert isinstance(reference, list)
    return [run_without_library(ir.from_proto(model), feeds)[0], reference[0]]


@pytest.mark.parametrize(("rows", "inputs", "bits", "group_size", "offset"), RAGGED)
def test_matmul_multiplies_with_the_dequantized_weight(
    rows: int, inputs: int, bits: int, group_size: int, offset: bool
) -> None:
    weight = random_weight(rows, inputs, bits, group_size, offset)
    activations = np.random.default_rng(5).standard_normal((3, inputs)).astype(np.float32)
    expected = activations @ weight.dequantize().T
    for got in both(one_node(contract.MATMUL, weight, TensorProto.FLOAT, 2), activations):
        np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("shape", [(70,), (4, 70), (2, 3, 70), (2, 1, 3, 70), (0, 70), (2, 0, 70)])
def test_matmul_takes_activations_of_any_rank_and_none_at_all(shape: tuple[int, ...]) -> None:
    weight = random_weight(20, 70)
    activations = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    expected = activations @ weight.dequantize().T
    for got in both(one_node(contract.MATMUL, weight, TensorProto.FLOAT, len(shape)), activations):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_matmul_returns_the_type_of_its_activations_at_every_opset(opset: int, dtype: Any) -> None:
    weight = random_weight(20, 70)
    activations = np.random.default_rng(5).standard_normal((3, 70)).astype(dtype)
    expected = activations.astype(np.float32) @ weight.dequantize().T
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    relative = FLOAT16_RELATIVE if dtype == np.float16 else 0.0
    for got in both(one_node(contract.MATMUL, weight, kind, 2, opset), activations):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=relative, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(("rows", "inputs", "bits", "group_size", "offset"), RAGGED)
def test_gather_decodes_the_rows_that_are_asked_for(
    rows: int, inputs: int, bits: int, group_size: int, offset: bool
) -> None:
    weight = random_weight(rows, inputs, bits, group_size, offset)
    indices = np.array([[0, rows - 1], [-1, -rows]], np.int64)
    for got in both(one_node(contract.GATHER, weight, TensorProto.INT64, 2), indices):
        # Sums of at most 9 float32 terms in another order.
        np.testing.assert_allclose(got, weight.dequantize()[indices], rtol=0, atol=8 * 2.0**-23)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_gather_takes_indices_of_any_rank_and_none_at_all(shape: tuple[int, ...], dtype: Any) -> None:
    weight = random_weight(20, 70)
    indices = np.random.default_rng(5).integers(-20, 20, shape).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for got in both(one_node(contract.GATHER, weight, kind, len(shape)), indices):
        assert got.shape == (*shape, 70)
        np.testing.assert_allclose(got, weight.dequantize()[indices], rtol=0, atol=8 * 2.0**-23)


@pytest.mark.parametrize("index", [20, 31, -21])
def test_gather_refuses_an_index_outside_the_matrix_even_inside_the_padded_tile(index: int) -> None:
    model = one_node(contract.GATHER, random_weight(20, 70), TensorProto.INT64, 1)
    with pytest.raises(Exception, match=f"idx={index}"):
        run_without_library(ir.from_proto(model), {"indices": np.array([index])})


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy says it of the reference
def test_a_nan_or_infinite_alpha_reaches_exactly_its_row() -> None:
    weight = random_weight(4, 64, bits=1)
    weight.alpha[0, 1, 0], weight.alpha[0, 2, 1] = np.nan, np.inf
    activations = np.ones((1, 64), np.float32)
    for got in both(one_node(contract.MATMUL, weight, TensorProto.FLOAT, 2), activations):
        assert not np.isfinite(got[0, 1:3]).any()
        assert np.isfinite(got[0, [0, 3]]).all()


def test_the_functions_declare_what_the_contract_declares() -> None:
    for function in functions.functions(21):
        op = contract.OPS[function.name]
        assert function.domain == contract.DOMAIN
        assert [value.name for value in function.inputs] == [port.name for port in op.inputs]
        assert [value.name for value in function.outputs] == [port.name for port in op.outputs]
        assert set(function.attributes) == set(op.attributes)


def test_an_opset_before_the_oldest_supported_one_is_refused() -> None:
    with pytest.raises(ValueError, match="got 12, expected at least 13"):
        functions.functions(12)
