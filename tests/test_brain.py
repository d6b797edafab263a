# SPDX-License-Identifier: Apache-2.0
"""bfloat16 activations: every kernel computes them as float32 ones and rounds once at the end."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from bcq import contract
from bcq.exporting import functions
from bcq.kernels.core import Core
from bcq.packing import pack
from graphs import model_of, normal, op_types, pack_with, run_without_library
from guarded import guarded
from nodes import Array, activations, among_planes, brain_node, open_session, product, random_weight

CORE = Core.load()
BRAIN = np.dtype(ml_dtypes.bfloat16)
ROUNDING = 2.0**-8  # half a step of 8 significant bits
KERNELS = [row.name for row in CORE.kernels("BcqMatMul") if not row.flags & ~CORE.detected_flags()]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("M", [1, 3, 17, 70])
def test_every_kernel_gives_the_float32_result_rounded_once(kernel: str, M: int) -> None:
    # The same float32 activations reach the kernel on both sides, so not even the last bit may differ.
    weight = among_planes(random_weight(50, 130, 3, 32, offset=True), 4)
    a = activations(M, 130).astype(BRAIN)
    level = next(level for level in (0, 4, 1) if takes(kernel, level))
    got = CORE.matmul(guarded(a), weight, kernel=kernel, accuracy_level=level)
    expected = CORE.matmul(a.astype(np.float32), weight, kernel=kernel, accuracy_level=level)
    assert got.dtype == BRAIN
    np.testing.assert_array_equal(got.view(np.uint16), expected.astype(BRAIN).view(np.uint16))


def takes(kernel: str, level: int) -> bool:
    """Whether a kernel runs a small problem at an accuracy level."""
    try:
        CORE.matmul(
            activations(1, 130), pack(random_weight(50, 130, 3, 32)), kernel=kernel, accuracy_level=level
        )
    except ValueError:
        return False
    return True


def test_every_bfloat16_survives_the_way_in_and_out() -> None:
    values = np.arange(2**16, dtype=np.uint16).view(BRAIN)
    weight = random_weight(1, 1, 1, 1)
    weight.alpha[:] = 1.0
    sign = weight.dequantize()[0, 0]
    y = CORE.matmul(values[:, None], pack(weight), kernel="scalar")[:, 0].astype(np.float32) * sign
    finite = ~np.isnan(values.astype(np.float32))
    np.testing.assert_array_equal(y[finite], values.astype(np.float32)[finite])
    assert np.isnan(y[~finite]).all()


@pytest.mark.parametrize("M", [0, 1, 5, 200])
def test_rows_come_alone_as_in_a_batch(M: int) -> None:
    packed = pack(random_weight(40, 100, 2, 32))
    a = activations(M, 100).astype(BRAIN)
    whole = CORE.matmul(a, packed)
    assert whole.shape == (M, 40)
    for m in range(0, M, 33):
        alone = CORE.matmul(a[m : m + 1], packed)
        np.testing.assert_array_equal(alone.view(np.uint16), whole[m : m + 1].view(np.uint16))


def allowed(a: Array, exact: Array) -> Array:
    """One rounding to bfloat16, behind sums that are near-exact: 1e-4 of outputs of the size of 10."""
    return np.asarray(ROUNDING * np.abs(exact) + 2e-3)


@pytest.mark.parametrize("M", [0, 1, 5])
def test_a_session_multiplies_in_bfloat16(M: int) -> None:
    weight = random_weight(50, 100, 3, 32, offset=True)
    a = activations(M, 100).astype(BRAIN).astype(np.float32)
    session = open_session(brain_node(weight, 18))
    y = np.asarray(session.run(None, {"A": a})[0])
    exact = product(a, weight)
    assert (np.abs(y - exact) <= allowed(a, exact)).all()
    assert (y == y.astype(BRAIN).astype(np.float32)).all()


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_the_functions_say_the_same_in_bfloat16(opset: int) -> None:
    import onnxruntime as ort
    from onnx.reference import ReferenceEvaluator

    weight = random_weight(20, 70, 2, 32, offset=True)
    a = activations(3, 70).astype(BRAIN).astype(np.float32)
    model = brain_node(weight, opset)
    made = functions.functions(opset, ir.DataType.BFLOAT16)
    model.functions.extend(ir.serde.serialize_function(f) for f in made)
    plain = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    exact = product(a, weight)
    reference: Any = ReferenceEvaluator(model).run(None, {"A": a})
    for y in (np.asarray(plain.run(None, {"A": a})[0]), reference[0]):
        assert (np.abs(y - exact) <= allowed(a, exact)).all()


@pytest.mark.parametrize("opset", [13, 21])
def test_matrices_of_a_bfloat16_graph_are_packed_and_a_table_gets_a_cast(opset: int) -> None:
    text = (
        "main (int64[m] ids) => (float[m, 20] y) { rows = Gather <axis = 0> (table, ids)"
        " product = MatMul (rows, w) y = Cast <to = 1> (product) }"
    )
    w, table = normal(48, 20).astype(BRAIN), normal(30, 48, seed=3).astype(BRAIN)
    model = model_of(text, opset=opset, w=w, table=table)
    report, source = pack_with(model)
    assert op_types(model) == ["BcqGather", "Cast", "BcqMatMul", "Cast"]
    assert report.packed_count == 2
    ids = np.array([0, 29, 7])
    a = source.dense["table"][ids].astype(BRAIN).astype(np.float64)
    exact = a @ source.dense["w"].T.astype(np.float64)
    with_library = open_session(ir.to_proto(model)).run(None, {"ids": ids})
    for y in (run_without_library(model, {"ids": ids})[0], np.asarray(with_library[0])):
        assert (np.abs(y - exact) <= allowed(a, exact)).all()


def test_the_contract_has_the_types_that_are_registered() -> None:
    assert contract.MATMUL.inputs[0].types == ("float32", "float16", "bfloat16")
    assert contract.MATMUL.outputs[0].types == contract.MATMUL.inputs[0].types
