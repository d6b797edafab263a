# SPDX-License-Identifier: Apache-2.0
"""MatMul on a constant right operand becomes BcqMatMul, and nothing else does."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bcq import contract
from bcq.errors import UnsupportedError
from bcq.passes import MatrixRecord
from graphs import (
    FLOAT16_RELATIVE,
    FLOAT32_TOLERANCE,
    Quick,
    bcq_nodes,
    model_of,
    normal,
    op_types,
    pack_with,
    run_without_library,
)

PLAIN = "main (float[m, 48] x) => (float[m, 20] y) { y = MatMul (x, w) }"


def only(records: list[MatrixRecord]) -> MatrixRecord:
    assert len(records) == 1
    return records[0]


def test_a_plain_matmul_becomes_one_operator_that_computes_with_the_packed_weight() -> None:
    model = model_of(PLAIN, w=normal(48, 20))
    report, source = pack_with(model)
    assert op_types(model) == ["BcqMatMul"]
    assert (report.packed_count, report.total_count, report.packed_share) == (1, 1, 1.0)
    x = normal(3, 48, seed=2)
    (y,) = run_without_library(model, {"x": x})
    np.testing.assert_allclose(y, x @ source.dense["w"].T, rtol=0, atol=FLOAT32_TOLERANCE)


def test_the_operator_has_every_attribute_of_the_contract_and_the_tensors_have_its_names() -> None:
    model = model_of(PLAIN, w=normal(48, 20))
    pack_with(model)
    node = bcq_nodes(model)[0]
    assert list(node.attributes) == list(contract.MATMUL.attributes)
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    assert (values["K"], values["N"], values["bits"], values["group_size"]) == (48, 20, 2, 48)
    assert [value.name for value in node.inputs[1:]] == ["w.codes", "w.alpha_1", "w.alpha_rest", "w.offset"]  # type: ignore[union-attr]
    assert model.opset_imports[contract.DOMAIN] == contract.OPSET_VERSION
    assert [key[:2] for key in model.functions] == [(contract.DOMAIN, "BcqMatMul")]


def test_names_of_inputs_and_outputs_and_the_result_type_stay() -> None:
    model = model_of(PLAIN, w=normal(48, 20))
    pack_with(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    output = model.graph.outputs[0]
    assert (output.name, output.dtype) == ("y", ir.DataType.FLOAT)
    assert output.producer() is bcq_nodes(model)[0]


def test_the_dense_matrix_is_gone_when_nobody_reads_it() -> None:
    model = model_of(PLAIN, w=normal(48, 20))
    pack_with(model)
    assert "w" not in model.graph.initializers


@pytest.mark.parametrize("shape", [(48,), (2, 3, 48), (2, 0, 48)])
def test_activations_of_any_rank_pass_through(shape: tuple[int, ...]) -> None:
    dims = ", ".join(map(str, shape[:-1]))
    result = f"float[{', '.join(map(str, (*shape[:-1], 20)))}]"
    text = f"main (float[{dims + ', ' if dims else ''}48] x) => ({result} y) {{ y = MatMul (x, w) }}"
    model = model_of(text, w=normal(48, 20))
    _, source = pack_with(model)
    x = normal(*shape, seed=2)
    (y,) = run_without_library(model, {"x": x})
    np.testing.assert_allclose(y, x @ source.dense["w"].T, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("opset", [13, 14, 17, 18, 21, 22])
@pytest.mark.parametrize(("name", "dtype"), [("float", np.float32), ("float16", np.float16)])
def test_both_activation_types_work_at_every_opset(opset: int, name: str, dtype: Any) -> None:
    text = f"main ({name}[m, 48] x) => ({name}[m, 20] y) {{ y = MatMul (x, w) }}"
    model = model_of(text, opset=opset, w=normal(48, 20, dtype=dtype))
    _, source = pack_with(model)
    assert op_types(model) == ["BcqMatMul"]
    x = normal(3, 48, seed=2, dtype=dtype)
    (y,) = run_without_library(model, {"x": x})
    assert y.dtype == dtype
    expected = x.astype(np.float32) @ source.dense["w"].T
    relative = FLOAT16_RELATIVE if dtype == np.float16 else 0
    np.testing.assert_allclose(y, expected, rtol=relative, atol=FLOAT32_TOLERANCE)


CHAINS = {
    "Transpose": ("t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)", normal(20, 48)),
    "Transpose without perm": ("t = Transpose (w) y = MatMul (x, t)", normal(20, 48)),
    "Transpose twice": ("s = Transpose (w) t = Transpose (s) y = MatMul (x, t)", normal(48, 20)),
    "Identity": ("t = Identity (w) y = MatMul (x, t)", normal(48, 20)),
    "Cast from float16": ("t = Cast <to = 1> (w) y = MatMul (x, t)", normal(48, 20, dtype=np.float16)),
    "Cast from double": ("t = Cast <to = 1> (w) y = MatMul (x, t)", normal(48, 20, dtype=np.float64)),
    "Cast and Transpose": (
        "s = Cast <to = 1> (w) t = Transpose (s) y = MatMul (x, t)",
        normal(20, 48, dtype=np.float16),
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_weight_is_found_behind_nodes_that_only_move_or_convert_it(chain: str) -> None:
    body, weight = CHAINS[chain]
    model = model_of(f"main (float[m, 48] x) => (float[m, 20] y) {{ {body} }}", w=weight)
    _, source = pack_with(model)
    assert op_types(model) == ["BcqMatMul"]
    assert list(model.graph.initializers) == ["w.codes", "w.alpha_1", "w.alpha_rest", "w.offset"]
    x = normal(3, 48, seed=2)
    (y,) = run_without_library(model, {"x": x})
    np.testing.assert_allclose(y, x @ source.dense["w"].T, rtol=0, atol=FLOAT32_TOLERANCE)


def test_the_tensor_of_a_constant_node_is_a_weight_named_after_the_node_that_reads_it() -> None:
    model = model_of("main (float[m, 48] x) => (float[m, 20] y) { y = MatMul (x, w) }", w=normal(48, 20))
    proto = ir.to_proto(model)
    tensor = proto.graph.initializer.pop()
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    proto.graph.node[1].name = "/model/layers.0/q_proj/MatMul"
    proto.graph.node[0].output[0] = proto.graph.node[1].input[1] = "/model/Constant_output_0"
    model = ir.from_proto(proto)
    report, _ = pack_with(model)
    assert op_types(model) == ["BcqMatMul"]
    assert only(report.matrices).name == "model.layers.0.q_proj.weight"


SKIPPED = {
    "left operand": (
        "(float[48, m] x) => (float[20, m] y) { y = MatMul (w, x) }",
        normal(20, 48),
        "left operand of MatMul 'y'",
    ),
    "batched": (
        "(float[3, m, 48] x) => (float[3, m, 20] y) { y = MatMul (x, w) }",
        normal(3, 48, 20),
        "MatMul 'y' reads a batch of matrices: shape [3, 48, 20]",
    ),
    "double": (
        "(double[m, 48] x) => (double[m, 20] y) { y = MatMul (x, w) }",
        normal(48, 20, dtype=np.float64),
        "MatMul 'y' computes in double",
    ),
    "einsum": (
        '(float[m, 48] x) => (float[m, 20] y) { y = Einsum <equation = "mk,kn->mn"> (x, w) }',
        normal(48, 20),
        "Einsum 'y' reads it; MatMul, Gemm and Gather are handled",
    ),
    "fused": (
        "(float[m, 48] x) => (float[m, 20] y) { y = com.microsoft.FusedMatMul (x, w) }",
        normal(48, 20),
        "FusedMatMul 'y' reads it",
    ),
    "default of an input": (
        "(float[m, 48] x, float[48, 20] w) => (float[m, 20] y) { y = MatMul (x, w) }",
        normal(48, 20),
        "it is an input of the graph with a default value",
    ),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_a_matrix_that_cannot_be_packed_stays_and_the_reason_is_reported(case: str) -> None:
    body, weight, reason = SKIPPED[case]
    model = model_of(f"main {body}", w=weight)
    before = op_types(model)
    report, source = pack_with(model)
    assert op_types(model) == before
    assert not bcq_nodes(model)
    assert contract.DOMAIN not in model.opset_imports
    record = only(report.matrices)
    assert record.bits is None
    assert reason in record.reason
    assert report.packed_share == 0.0
    assert source.asked == []


@pytest.mark.parametrize(
    "body",
    [
        "{ t = Transpose (x) y = MatMul (x, t) }",  # no constant at all
        "{ y = Add (x, w) }",  # a constant that nobody multiplies with
        "{ s = Mul (w, w) y = Add (x, s) }",
    ],
)
def test_a_graph_without_constant_matrices_is_left_alone(body: str) -> None:
    model = model_of(f"main (float[48, 48] x) => (float[48, 48] y) {body}", w=normal(48, 48))
    before = op_types(model)
    report, _ = pack_with(model)
    assert op_types(model) == before
    assert report.matrices == []


def test_a_matrix_that_another_node_reads_too_is_packed_for_one_kept_for_the_other_and_counts_as_dense() -> (
    None
):
    text = "main (float[m, 48] x) => (float[m, 48] y) { a = MatMul (x, w) b = ReduceSum (w) y = Add (a, b) }"
    model = model_of(text, w=normal(48, 48))
    report, source = pack_with(model)
    assert op_types(model) == ["BcqMatMul", "ReduceSum", "Add"]
    assert "w" in model.graph.initializers
    record = only(report.matrices)
    assert record.bits is None
    assert "dense copy stays: ReduceSum 'b' reads it" in record.reason
    x = normal(2, 48, seed=2)
    (y,) = run_without_library(model, {"x": x})
    dense_sum = normal(48, 48).sum()
    # The sum of 2304 values of size 1 adds its own rounding to the product's.
    np.testing.assert_allclose(y, x @ source.dense["w"].T + dense_sum, rtol=0, atol=5 * FLOAT32_TOLERANCE)


def test_one_matrix_read_in_both_orientations_is_packed_once_for_each() -> None:
    text = """main (float[m, 48] x) => (float[m, 48] y) {
        t = Transpose (w) h = MatMul (x, w) y = MatMul (h, t) }"""
    model = model_of(text, w=normal(48, 32))
    _, source = pack_with(model)
    assert op_types(model) == ["BcqMatMul", "BcqMatMul"]
    assert sorted((matrix.rows, matrix.inputs) for matrix in source.asked) == [(32, 48), (48, 32)]
    assert sorted(source.dense) == ["w", "w_1"]


def test_a_matrix_in_a_branch_stays_dense_and_says_so() -> None:
    text = """main (float[m, 48] x, bool c) => (float[m, 20] y) {
        y = If (c) <then_branch = one () => (float[m, 20] a) { a = MatMul (x, w) },
                    else_branch = two () => (float[m, 20] b) { d = MatMul (x, w) b = Neg (d) }> }"""
    model = model_of(text, w=normal(48, 20))
    report, _ = pack_with(model)
    assert op_types(model) == ["If"]
    assert "lies in a subgraph" in only(report.matrices).reason


def with_a_function(opset: int) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        main (float[m, 48] x) => (float[m, 20] y) {{ y = local.linear (x, w) }}
        <domain: "local", opset_import: ["" : {opset}]> linear (a, b) => (c) {{ c = MatMul (a, b) }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(48, 20), "w"))
    return ir.from_proto(proto)


def test_a_matrix_inside_a_model_local_function_is_packed_after_inlining() -> None:
    model = with_a_function(opset=18)
    pack_with(model)
    assert op_types(model) == ["BcqMatMul"]


def test_a_function_of_another_opset_than_the_model_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match=r"function 'linear' uses opset 17 .* the model 18"):
        pack_with(with_a_function(opset=17))


def test_equal_layers_share_one_packed_matrix() -> None:
    text = "main (float[m, 48] x) => (float[m, 48] y) { h = MatMul (x, a) y = MatMul (h, b) }"
    model = model_of(text, a=normal(48, 48), b=normal(48, 48))
    report, source = pack_with(model)
    assert report.total_count == 1
    assert [matrix.name for matrix in source.asked] == ["a"]
    first, second = bcq_nodes(model)
    assert first.inputs[1:] == second.inputs[1:]
    assert list(model.graph.initializers) == ["a.codes", "a.alpha_1", "a.alpha_rest", "a.offset"]


def test_a_matrix_that_the_user_keeps_stays_and_does_not_count_against_the_share() -> None:
    from bcq.passes import Left

    text = "main (float[m, 48] x) => (float[m, 48] y) { h = MatMul (x, a) y = MatMul (h, b) }"
    model = model_of(text, a=normal(48, 48), b=normal(48, 48, seed=2))
    report, _ = pack_with(model, Quick(keep={"a": Left("kept by --set 'a=keep'", requested=True)}))
    assert op_types(model) == ["MatMul", "BcqMatMul"]
    assert "a" in model.graph.initializers
    assert (report.packed_count, report.total_count, report.packed_share) == (1, 2, 1.0)


COMPUTED = {
    "dequantized": (
        "d = DequantizeLinear (w, s) y = MatMul (x, d)",
        {"w": np.ones((48, 20), np.int8), "s": np.float32(0.5)},
        "DequantizeLinear 'd' computes it from constants",
    ),
    "concatenated": (
        "d = Concat <axis = 1> (w, v) t = Cast <to = 1> (d) y = MatMul (x, t)",
        {"w": normal(48, 12), "v": normal(48, 8)},
        "Concat 'd' computes it from constants",
    ),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_a_matrix_computed_from_constants_stays_and_counts_as_dense(case: str) -> None:
    body, constants, reason = COMPUTED[case]
    text = f"main (float[m, 48] x) => (float[m, 20] y) <float[48, 20] d> {{ {body} }}"
    model = model_of(text, **cast(Any, constants))
    report, _ = pack_with(model)
    assert not bcq_nodes(model)
    record = only(report.matrices)
    assert (record.rows, record.inputs, record.bits) == (20, 48, None)
    assert reason in record.reason
    assert report.packed_share == 0.0


def test_a_matrix_computed_at_run_time_is_no_constant() -> None:
    text = (
        "main (float[48, 48] x) => (float[48, 48] y) <float[48, 48] d> { d = Add (x, w) y = MatMul (x, d) }"
    )
    report, _ = pack_with(model_of(text, w=normal(48, 48)))
    assert report.matrices == []


@pytest.mark.parametrize("version", [8, 13])
def test_the_file_is_of_a_version_that_every_supported_onnxruntime_reads(version: int) -> None:
    model = model_of(PLAIN, ir_version=version, w=normal(48, 20))
    pack_with(model)
    assert model.ir_version == 10
