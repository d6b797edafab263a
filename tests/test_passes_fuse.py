# SPDX-License-Identifier: Apache-2.0
"""Products of the same activations become one operator; results keep their bits, matrices their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bcq
from bcq import fused, packing, passes
from bcq.cli import main
from bcq.errors import InputError
from bcq.exporting.write import write_model
from bcq.files.exported import ExportedWeights
from bcq.matrices.plan import QuantizeOptions
from bcq.packing import PackedWeight
from bcq.passes import Left, MatrixRef
from graphs import (
    Feeds,
    Quick,
    bcq_nodes,
    model_of,
    normal,
    op_types,
    pack_with,
    random_weight,
    run_without_library,
)

QKV = """main (float[m, 48] x) => (float[m, NQ] q, float[m, NK] k, float[m, NV] v)
    { q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv) }"""
INPUTS = 48


def qkv(*rows: int) -> ir.Model:
    """Three products of one value with so many outputs."""
    text = QKV
    for letter, count in zip("QKV", rows, strict=True):
        text = text.replace(f"N{letter}", str(count))
    weights: dict[str, Any] = {
        f"w{part}": normal(INPUTS, n, seed=n + i) for i, (part, n) in enumerate(zip("qkv", rows, strict=True))
    }
    return model_of(text, **weights)


def with_library(model: ir.Model, folder: Path, feeds: Feeds) -> list[Any]:
    write_model(model, folder / "model.onnx")
    return list(bcq.session(folder).run(None, feeds))


def unfused(model: ir.Model) -> ir.Model:
    passes.run(model, Quick(), pipeline=passes.UNFUSED)
    return model


# All multiples of 16; the last one ragged; each ragged, so that rows of a tile come from two matrices.
ROWS = [(32, 16, 16), (32, 16, 20), (20, 36, 4)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("tokens", [1, 5])
def test_products_of_one_value_become_one_and_their_results_keep_every_bit(
    rows: tuple[int, int, int], tokens: int, tmp_path: Path
) -> None:
    model = qkv(*rows)
    report, _ = pack_with(model)
    assert op_types(model) == ["BcqMatMul", "Split"]
    assert [(fusion.name, fusion.parts) for fusion in report.fusions] == [("{wq,wk,wv}", ("wq", "wk", "wv"))]
    feeds = {"x": normal(tokens, INPUTS, seed=9)}
    (tmp_path / "apart").mkdir()
    apart = with_library(unfused(qkv(*rows)), tmp_path / "apart", feeds)
    for got, expected in zip(with_library(model, tmp_path, feeds), apart, strict=True):
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("rows", ROWS)
def test_the_fused_file_runs_without_the_library_and_in_the_reference_evaluator(
    rows: tuple[int, int, int],
) -> None:
    model = qkv(*rows)
    pack_with(model)
    feeds = {"x": normal(3, INPUTS, seed=9)}
    expected = run_without_library(unfused(qkv(*rows)), feeds)
    evaluator = onnx.reference.ReferenceEvaluator(ir.to_proto(model))
    for got in (run_without_library(model, feeds), evaluator.run(None, feeds)):
        for ours, theirs in zip(got, expected, strict=True):
            # Products of other sizes may sum in another order: 48 terms of size 1, partial sums below 40,
            # so at most 2 * 48 * 40 * 2^-24.
            np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=2.5e-4)


def test_every_part_keeps_its_name_its_values_and_its_hash(tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    write_model(unfused(qkv(20, 36, 4)), tmp_path / "apart" / "model.onnx")
    model = qkv(20, 36, 4)
    report, _ = pack_with(model)
    write_model(model, tmp_path / "model.onnx")
    ours, theirs = ExportedWeights.open(tmp_path), ExportedWeights.open(tmp_path / "apart")
    assert list(ours.packed) == ["wq", "wk", "wv"] == [record.name for record in report.matrices]
    assert ours.matmuls == theirs.matmuls == 3
    for name, packed in ours.packed.items():
        assert packed.code_hash() == theirs.packed[name].code_hash()
        for part, array in packed.tensors().items():
            np.testing.assert_array_equal(array, theirs.packed[name].tensors()[part])


def test_the_report_has_each_matrix_with_its_own_figures() -> None:
    apart, _ = pack_with(qkv(32, 16, 20))
    alone = passes.run(qkv(32, 16, 20), Quick(), pipeline=passes.UNFUSED)
    assert apart.matrices == alone.matrices
    assert alone.fusions == []


def test_the_operator_lies_where_the_first_product_was_so_that_all_readers_come_later() -> None:
    text = """main (float[m, 48] x) => (float[m, 48] y) {
        a = MatMul (x, wa) b = Relu (a) c = MatMul (x, wc) y = Add (b, c) }"""
    model = model_of(text, wa=normal(48, 48), wc=normal(48, 48, seed=2))
    pack_with(model)
    assert op_types(model) == ["BcqMatMul", "Split", "Relu", "Add"]


BIASED = """main (float[m, 48] x) => (float[m, 32] y) {
    a = MatMul (x, wa) c = Add (a, ba) d = MatMul (x, wd) e = Add (bd, d) y = Mul (c, e) }"""


def biased(text: str = BIASED, **changes: Any) -> ir.Model:
    values = {
        "wa": normal(48, 32), "wd": normal(48, 32, seed=2), "ba": normal(32, seed=3), "bd": normal(32, seed=4)
    }  # fmt: skip
    return model_of(text, **{**values, **changes})


def test_constant_biases_become_one_add_before_the_split_and_keep_their_names(tmp_path: Path) -> None:
    model = biased()
    pack_with(model)
    assert op_types(model) == ["BcqMatMul", "Add", "Split", "Mul"]
    feeds = {"x": normal(3, 48, seed=9)}
    (tmp_path / "apart").mkdir()
    expected = with_library(unfused(biased()), tmp_path / "apart", feeds)
    assert with_library(model, tmp_path, feeds)[0].tobytes() == expected[0].tobytes()
    dense = ExportedWeights.open(tmp_path).dense
    np.testing.assert_array_equal(dense["ba"].numpy(), normal(32, seed=3))
    np.testing.assert_array_equal(dense["bd"].numpy(), normal(32, seed=4))


NOT_MERGED = {
    "a part without a bias": (BIASED.replace("c = Add (a, ba)", "c = Relu (a)"), {}),
    "a bias for the rows": (BIASED, {"ba": normal(1, seed=3)}),
    "a result that is read twice": (BIASED.replace("Mul (c, e)", "Sum (c, e, a)"), {}),
    "a bias that is computed": (
        BIASED.replace("c = Add (a, ba)", "z = ReduceMean <keepdims = 0> (x, zero) t = Slice (z, zero, n)"
                       " c = Add (a, t)"),
        {"zero": np.array([0], np.int64), "n": np.array([32], np.int64)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_MERGED)
def test_biases_stay_behind_the_split_when_one_of_them_is(case: str) -> None:
    text, changes = NOT_MERGED[case]
    model = biased(text, **changes)
    pack_with(model)
    types = op_types(model)
    assert types.index("Split") < types.index("Add")
    assert "BcqMatMul" in types


TWO = "main (float[m, 48] x) => (float[m, 48] y) { a = MatMul (x, wa) b = MatMul (x, wb) y = Add (a, b) }"


class Chosen:
    """A source of random planes, with bits, group size and offset by name."""

    def __init__(self, **kinds: dict[str, Any]) -> None:
        self.kinds = kinds

    def identity(self, matrix: MatrixRef) -> str:
        return matrix.name

    def pack(self, matrix: MatrixRef) -> PackedWeight | Left:
        return packing.pack(random_weight(matrix.rows, matrix.inputs, **self.kinds.get(matrix.name, {})))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"bits": 4}, "unlike 'a', it has bits 4, not 3"),
        ({"group_size": 48}, "unlike 'a', it has group_size 48, not 32"),
        ({"offset": True}, "unlike 'a', it has offset True, not False"),
        ({"offset": True, "bits": 2}, "unlike 'a', it has bits 2, not 3, offset True, not False"),
    ],
)
def test_unlike_matrices_stay_apart_and_the_reason_is_recorded(other: dict[str, Any], reason: str) -> None:
    model = model_of(TWO, wa=normal(48, 48), wb=normal(48, 48, seed=2))
    report = passes.run(model, Chosen(wb=other))
    assert op_types(model) == ["BcqMatMul", "BcqMatMul", "Add"]
    assert [fusion.name for fusion in report.fusions] == ["", ""]
    assert reason.replace("'a'", f"'{bcq_nodes(model)[0].name}'") == report.fusions[1].reason


def test_matrices_that_are_set_apart_by_name_stay_apart_and_their_results_keep_their_bits(
    tmp_path: Path,
) -> None:
    options = QuantizeOptions(bits=2, method="greedy", group_size=32, overrides=("wk=2:g0", "wv=2:offset"))
    results = []
    for name, pipeline in (("fused", passes.PIPELINE), ("apart", passes.UNFUSED)):
        model = qkv(32, 32, 32)
        report = passes.run(model, passes.SolveOnTheFly(options), pipeline=pipeline)
        assert op_types(model) == ["BcqMatMul"] * 3
        assert [record.offset for record in report.matrices] == [False, False, True]
        (tmp_path / name).mkdir()
        outputs = with_library(model, tmp_path / name, {"x": normal(2, INPUTS, seed=9)})
        results.append([output.tobytes() for output in outputs])
    assert results[0] == results[1]


def test_alike_ones_are_fused_beside_an_unlike_one() -> None:
    text = """main (float[m, 48] x) => (float[m, 48] y) {
        a = MatMul (x, wa) b = MatMul (x, wb) c = MatMul (x, wc) y = Sum (a, b, c) }"""
    weights: dict[str, Any] = {f"w{part}": normal(48, 48, seed=i) for i, part in enumerate("abc")}
    model = model_of(text, **weights)
    report = passes.run(model, Chosen(wb={"bits": 1}))
    assert op_types(model) == ["BcqMatMul", "Split", "BcqMatMul", "Sum"]
    assert [(fusion.name, fusion.parts) for fusion in report.fusions] == [
        ("{wa,wc}", ("wa", "wc")),
        ("", ("wb",)),
    ]


def test_one_plane_and_offsets_are_fused_too(tmp_path: Path) -> None:
    source = Chosen(wa={"bits": 1, "offset": True}, wb={"bits": 1, "offset": True})
    results = []
    for name, pipeline in (("fused", passes.PIPELINE), ("apart", passes.UNFUSED)):
        model = model_of(TWO, wa=normal(48, 48), wb=normal(48, 48, seed=2))
        passes.run(model, source, pipeline=pipeline)
        (tmp_path / name).mkdir()
        results.append(with_library(model, tmp_path / name, {"x": normal(2, 48, seed=9)})[0].tobytes())
    assert results[0] == results[1]


def test_a_matrix_that_other_nodes_read_too_is_not_copied_into_a_fused_one() -> None:
    text = """main (float[m, 48] x, int64[m] i) => (float[m, 48] y) {
        a = MatMul (x, wa) t = Transpose (wb) b = MatMul (x, t) e = Gather (wb, i) y = Sum (a, b, e) }"""
    model = model_of(text, wa=normal(48, 48), wb=normal(48, 48, seed=2))
    report, _ = pack_with(model)
    assert sorted(op_types(model)) == ["BcqGather", "BcqMatMul", "BcqMatMul", "Sum"]
    reasons = {fusion.parts: fusion.reason for fusion in report.fusions}
    assert "another node reads 'wb.codes', too" in reasons[("wb",)]
    assert reasons[("wa",)] == "no other product of the same activations can be fused"


def test_products_of_different_values_stay_apart_without_a_word() -> None:
    text = "main (float[m, 48] x) => (float[m, 48] y) { a = MatMul (x, wa) y = MatMul (a, wb) }"
    model = model_of(text, wa=normal(48, 48), wb=normal(48, 48, seed=2))
    report, _ = pack_with(model)
    assert op_types(model) == ["BcqMatMul", "BcqMatMul"]
    assert report.fusions == []


def test_results_that_are_graph_outputs_or_read_in_a_branch_are_still_given() -> None:
    text = """main (float[m, 48] x, bool c) => (float[m, 16] a, float[m, 16] y) {
        a = MatMul (x, wa) b = MatMul (x, wb)
        y = If (c) <then_branch = one () => (float[m, 16] p) { p = Neg (b) },
                    else_branch = two () => (float[m, 16] q) { q = Identity (b) }> }"""
    weights: dict[str, Any] = {"wa": normal(48, 16), "wb": normal(48, 16, seed=2)}
    model = model_of(text, **weights)
    pack_with(model)
    assert op_types(model) == ["BcqMatMul", "Split", "If"]
    feeds = {"x": normal(3, 48, seed=9), "c": np.array(True)}
    expected = run_without_library(unfused(model_of(text, **weights)), feeds)
    for got, value in zip(run_without_library(model, feeds), expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=0, atol=2.5e-4)  # the bound derived above


def test_float16_products_are_fused() -> None:
    text = """main (float16[m, 48] x) => (float16[m, 16] y) {
        a = MatMul (x, wa) b = MatMul (x, wb) y = Add (a, b) }"""
    weights: dict[str, Any] = {
        "wa": normal(48, 16, dtype=np.float16),
        "wb": normal(48, 16, seed=2, dtype=np.float16),
    }
    model = model_of(text, opset=13, **weights)
    pack_with(model)
    assert op_types(model) == ["BcqMatMul", "Split", "Add"]
    assert run_without_library(model, {"x": normal(3, 48, seed=9, dtype=np.float16)})[0].dtype == np.float16


def test_nothing_is_joined_before_somebody_reads_it() -> None:
    model = qkv(32, 16, 16)
    passes.run(model, Quick())
    codes = bcq_nodes(model)[0].inputs[1]
    assert codes is not None
    assert isinstance(codes.const_value, ir.LazyTensor)
    assert codes.const_value.numpy() is not codes.const_value.numpy()  # made anew: the writer holds one


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        model = qkv(32, 16, 20)
        passes.run(model, passes.SolveOnTheFly(QuantizeOptions(method="greedy")))
        (tmp_path / name).mkdir()
        write_model(model, tmp_path / name / "model.onnx")
        files.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "note", ["[", "[]", '[["wq", 32]]', '[["wq", 0], ["wk", 64]]', '[["wq"]]', '{"wq": 64}', "[" * 100_000]
)
def test_a_note_that_does_not_fit_its_node_is_refused(note: str, tmp_path: Path) -> None:
    model = qkv(32, 16, 16)
    pack_with(model)
    bcq_nodes(model)[0].metadata_props[fused.NOTE] = note
    write_model(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="its note on parts") as caught:
        ExportedWeights.open(tmp_path)
    assert caught.value.code == "E109"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 3), st.booleans())
def test_taking_parts_is_the_inverse_of_joining_rows(rows: list[int], bits: int, offset: bool) -> None:
    parts = [packing.pack(random_weight(n, 40, bits, 32, offset, seed=n)) for n in rows]
    tensors: dict[str, Any] = {
        name: parts[0].offset
        if name == "offset" and not offset
        else fused.join_rows([part.tensors()[name] for part in parts], rows)
        for name in parts[0].tensors()
    }
    whole = PackedWeight(**tensors, inputs=40, rows=sum(rows), group_size=32)
    again = fused.take_parts(whole, fused.parts_of([str(i) for i in range(len(rows))], rows))
    for (_, got), expected in zip(again, parts, strict=True):
        for name, array in got.tensors().items():
            np.testing.assert_array_equal(array, expected.tensors()[name])
            assert array.shape == expected.tensors()[name].shape


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["h.0.q_proj.weight", "h.0.k_proj.weight"], "h.0.{q,k}_proj.weight"),
        (["mlp.gate_proj.weight", "mlp.up_proj.weight"], "mlp.{gate,up}_proj.weight"),
        (["w", "w_1"], "{w,w_1}"),
        (["a.b.c", "a.b.c.b.c"], "a.b.{c,c.b.c}"),
        (["query", "key"], "{query,key}"),
    ],
)
def test_a_fused_matrix_is_named_after_its_parts(names: list[str], expected: str) -> None:
    assert fused.joined_name(names) == expected


@pytest.mark.parametrize("fuse", [True, False])
def test_an_export_fuses_unless_it_is_asked_not_to(fuse: bool, tmp_path: Path) -> None:
    weights: dict[str, Any] = {"wa": normal(48, 48), "wb": normal(48, 48, seed=2)}
    write_model(model_of(TWO, **weights), tmp_path / "two.onnx")
    words = [
        "export",
        str(tmp_path / "two.onnx"),
        "-o",
        str(tmp_path / "out"),
        "--method",
        "greedy",
        "--quiet",
    ]
    assert main(words if fuse else [*words, "--no-fuse"]) == 0
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert [node.op_type for node in model.graph.node].count("BcqMatMul") == (1 if fuse else 2)
    report = json.loads((tmp_path / "out" / "bcq_report.json").read_text())
    assert [matrix["name"] for matrix in report["matrices"]] == ["wa", "wb"]
    assert report["fused"] == ([{"name": "{wa,wb}", "parts": ["wa", "wb"], "reason": ""}] if fuse else [])
    assert bcq.verify(tmp_path / "out", tmp_path / "two.onnx").ok
