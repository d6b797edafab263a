# SPDX-License-Identifier: Apache-2.0
"""Gemm on a constant right operand becomes BcqMatMul with what is left of alpha, beta and the bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphs import (
    FLOAT16_RELATIVE,
    FLOAT32_TOLERANCE,
    model_of,
    normal,
    op_types,
    pack_with,
    run_without_library,
)

M, K, N = 3, 48, 20


def gemm(attributes: str, inputs: str = "x, w", a: str = "M, 48", dtype: str = "float") -> str:
    left = a.replace("M", "3")
    return f"main ({dtype}[{left}] x) => ({dtype}[3, 20] y) {{ y = Gemm <{attributes}> ({inputs}) }}"


# name: attributes, bias, operators afterwards
CASES: dict[str, tuple[str, Any, list[str]]] = {
    "no bias": ("transB = 0", None, ["BcqMatMul"]),
    "transB": ("transB = 1", None, ["BcqMatMul"]),
    "bias [N]": ("transB = 0", normal(N, seed=3), ["BcqMatMul", "Add"]),
    "bias [1, N]": ("transB = 1", normal(1, N, seed=3), ["BcqMatMul", "Add"]),
    "bias [M, 1]": ("transB = 0", normal(M, 1, seed=3), ["BcqMatMul", "Add"]),
    "bias [M, N]": ("transB = 0", normal(M, N, seed=3), ["BcqMatMul", "Add"]),
    "bias scalar": ("transB = 0", np.float32(2.5), ["BcqMatMul", "Add"]),
    "alpha": ("alpha = 0.5", None, ["BcqMatMul", "Mul"]),
    "alpha and bias": ("alpha = 0.5", normal(N, seed=3), ["BcqMatMul", "Mul", "Add"]),
    "beta": ("beta = 0.25", normal(N, seed=3), ["BcqMatMul", "Mul", "Add"]),
    "beta zero": ("beta = 0.0", normal(N, seed=3), ["BcqMatMul"]),
    "all": (
        "alpha = 2.0, beta = 0.25, transA = 1, transB = 1",
        normal(N, seed=3),
        ["Transpose", "BcqMatMul", "Mul", "Mul", "Add"],
    ),
    "transA": ("transA = 1", None, ["Transpose", "BcqMatMul"]),
}


def attribute(text: str, name: str, default: float) -> float:
    found = [part.split("=")[1] for part in text.split(",") if part.strip().startswith(name)]
    return float(found[0]) if found else default


@pytest.mark.parametrize("case", CASES)
def test_every_form_of_gemm_is_rewritten_and_computes_the_same_formula(case: str) -> None:
    attributes, bias, after = CASES[case]
    turned_a, turned_b = attribute(attributes, "transA", 0) == 1, attribute(attributes, "transB", 0) == 1
    constants: dict[str, Any] = {"w": normal(N, K) if turned_b else normal(K, N)}
    if bias is not None:
        constants["c"] = np.asarray(bias)
    text = gemm(attributes, "x, w" if bias is None else "x, w, c", a="48, M" if turned_a else "M, 48")
    model = model_of(text, **constants)
    report, source = pack_with(model)
    assert op_types(model) == after
    assert report.matrices[0].kinds == ("gemm",)
    x = normal(K, M, seed=2) if turned_a else normal(M, K, seed=2)
    (y,) = run_without_library(model, {"x": x})
    product = (x.T if turned_a else x) @ source.dense["w"].T
    expected = attribute(attributes, "alpha", 1) * product
    if bias is not None:
        expected = expected + attribute(attributes, "beta", 1) * bias
    np.testing.assert_allclose(y, expected, rtol=0, atol=2 * FLOAT32_TOLERANCE)  # alpha is 2 at most


def test_a_float16_gemm_stays_in_float16() -> None:
    model = model_of(
        gemm("beta = 0.25", "x, w, c", dtype="float16"),
        w=normal(K, N, dtype=np.float16),
        c=normal(N, seed=3, dtype=np.float16),
    )
    _, source = pack_with(model)
    x = normal(M, K, seed=2, dtype=np.float16)
    (y,) = run_without_library(model, {"x": x})
    assert y.dtype == np.float16
    product = x.astype(np.float32) @ source.dense["w"].T
    expected = product + 0.25 * normal(N, seed=3, dtype=np.float16).astype(np.float32)
    # Product, a quarter of the bias and the sum are each rounded to float16: values below 32.
    np.testing.assert_allclose(y, expected, rtol=0, atol=3 * 32 * FLOAT16_RELATIVE)


def test_a_float16_gemm_that_scales_its_product_stays_dense() -> None:
    model = model_of(gemm("alpha = 0.125", "x, w", dtype="float16"), w=normal(K, N, dtype=np.float16))
    report, _ = pack_with(model)
    assert report.packed_count == 0
    assert "scales in float16" in report.matrices[0].reason


def test_a_bias_that_is_computed_at_run_time_stays_an_input_of_the_add() -> None:
    text = "main (float[3, 48] x, float[20] c) => (float[3, 20] y) { y = Gemm (x, w, c) }"
    model = model_of(text, w=normal(K, N))
    _, source = pack_with(model)
    x, c = normal(M, K, seed=2), normal(N, seed=4)
    (y,) = run_without_library(model, {"x": x, "c": c})
    np.testing.assert_allclose(y, x @ source.dense["w"].T + c, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(
    ("inputs", "shape", "reason"),
    [
        ("w, x", "[48, 20]", "left operand of Gemm 'y'"),
        ("x, x, w", "[3, 3]", ""),
    ],
)
def test_a_constant_that_is_not_the_right_operand_is_not_packed(inputs: str, shape: str, reason: str) -> None:
    size = (3, 48) if reason else (3, 3)
    text = f"main (float{shape} x) => (float[3, n] y) {{ y = Gemm ({inputs}) }}"
    model = model_of(text, w=normal(*size))
    report, _ = pack_with(model)
    assert op_types(model) == ["Gemm"]
    reasons = [record.reason for record in report.matrices]
    assert len(reasons) == bool(reason)  # a bias is not a matrix
    assert all(reason in found for found in reasons)
