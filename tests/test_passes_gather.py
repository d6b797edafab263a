# SPDX-License-Identifier: Apache-2.0
"""Gather of rows from a constant table becomes BcqGather; a tied head reads the same packed matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bcq import contract
from graphs import FLOAT32_TOLERANCE, bcq_nodes, model_of, normal, op_types, pack_with, run_without_library

TABLE = "main (int64[b, s] ids) => (float[b, s, 48] y) { y = Gather <axis = 0> (w, ids) }"


@pytest.mark.parametrize("axis", ["", "<axis = 0>", "<axis = -2>"])
@pytest.mark.parametrize(("index", "dtype"), [("int64", np.int64), ("int32", np.int32)])
def test_looking_up_rows_becomes_one_operator(axis: str, index: str, dtype: Any) -> None:
    model = model_of(
        f"main ({index}[b, s] ids) => (float[b, s, 48] y) {{ y = Gather {axis} (w, ids) }}", w=normal(20, 48)
    )
    report, source = pack_with(model)
    assert op_types(model) == ["BcqGather"]
    assert list(bcq_nodes(model)[0].attributes) == list(contract.GATHER.attributes)
    assert [key[1] for key in model.functions] == ["BcqGather"]
    assert report.packed_share == 1.0
    ids = np.array([[0, 19, -1], [-20, 7, 7]], dtype)
    (y,) = run_without_library(model, {"ids": ids})
    np.testing.assert_allclose(y, source.dense["w"][ids], rtol=0, atol=2.0**-22)  # two terms of size 1


def test_a_float16_table_gives_float16_rows_through_a_cast() -> None:
    model = model_of(TABLE.replace("float[", "float16["), w=normal(20, 48, dtype=np.float16))
    _, source = pack_with(model)
    assert op_types(model) == ["BcqGather", "Cast"]
    ids = np.array([[3, 4]])
    (y,) = run_without_library(model, {"ids": ids})
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, source.dense["w"][ids].astype(np.float16))


def test_a_table_behind_a_transpose_is_looked_up_in_the_right_direction() -> None:
    text = "main (int64[b, s] ids) => (float[b, s, 48] y) { t = Transpose (w) y = Gather (t, ids) }"
    model = model_of(text, w=normal(48, 20))
    _, source = pack_with(model)
    assert op_types(model) == ["BcqGather"]
    (y,) = run_without_library(model, {"ids": np.array([[3]])})
    np.testing.assert_allclose(y[0, 0], source.dense["w"][3], rtol=0, atol=2.0**-22)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(int64[s] ids) => (float[20, s] y) { y = Gather <axis = 1> (w, ids) }", "along axis 1, expected 0"),
        (
            "(int64[s, 1] ids) => (float[s, 48] y) { y = GatherND (w, ids) }",
            "",
        ),
    ],
)
def test_other_lookups_are_left_alone(text: str, reason: str) -> None:
    model = model_of(f"main {text}", w=normal(20, 48))
    before = op_types(model)
    report, _ = pack_with(model)
    assert op_types(model) == before
    assert [reason in record.reason for record in report.matrices] == [True] * bool(reason)


TIED: dict[str, tuple[str, dict[str, Any]]] = {
    "one initializer": (
        """main (int64[b, s] ids) => (float[b, s, 20] y) {
            h = Gather (w, ids) t = Transpose (w) y = MatMul (h, t) }""",
        {"w": normal(20, 48)},
    ),
    "a transposed copy": (
        "main (int64[b, s] ids) => (float[b, s, 20] y) { h = Gather (w, ids) y = MatMul (h, val_9) }",
        {"w": normal(20, 48), "val_9": np.ascontiguousarray(normal(20, 48).T)},
    ),
    "an equal copy in Gemm": (
        """main (int64[s] ids) => (float[s, 20] y) {
            h = Gather (w, ids) y = Gemm <transB = 1> (h, head) }""",
        {"w": normal(20, 48), "head": normal(20, 48)},
    ),
}


@pytest.mark.parametrize("case", TIED)
def test_a_tied_embedding_and_head_are_packed_once(case: str) -> None:
    text, constants = TIED[case]
    model = model_of(text, **constants)
    report, source = pack_with(model)
    assert op_types(model) == ["BcqGather", "BcqMatMul"]
    gather, matmul = bcq_nodes(model)
    assert gather.inputs[1:] == matmul.inputs[1:]
    assert (report.total_count, len(source.asked)) == (1, 1)
    assert source.asked[0].kinds[0] == "gather"
    assert len(source.asked[0].kinds) == 2
    assert list(model.graph.initializers) == ["w.codes", "w.alpha_1", "w.alpha_rest", "w.offset"]
    assert report.matrices[0].dense_bytes == 20 * 48 * 4
    ids = np.array([1, 5]) if "Gemm" in case else np.array([[1, 5]])
    (y,) = run_without_library(model, {"ids": ids})
    dense = source.dense["w"]
    np.testing.assert_allclose(y, dense[ids] @ dense.T, rtol=0, atol=FLOAT32_TOLERANCE)


def test_a_head_of_its_own_is_packed_apart() -> None:
    text = "main (int64[b, s] ids) => (float[b, s, 20] y) { h = Gather (w, ids) y = MatMul (h, head) }"
    model = model_of(text, w=normal(20, 48), head=normal(48, 20, seed=2))
    report, _ = pack_with(model)
    assert [record.name for record in report.matrices] == ["w", "head"]
