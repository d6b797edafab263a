# SPDX-License-Identifier: Apache-2.0
"""Gemm(A, W, C) = alpha A' W' + beta C becomes BcqMatMul, then Mul by alpha and Add of beta C."""

from __future__ import annotations

import onnx_ir as ir

from bcq import contract
from bcq.passes import naming
from bcq.passes.rewrite import Replacement
from bcq.passes.work import GEMM, PackedValues, Reading, Work


def rewrite_gemm(model: ir.Model, work: Work) -> None:
    """Rewrites every Gemm whose right operand was packed; transB is already part of how W was packed."""
    taken = naming.value_names(model)
    for reading, packed in work.packed_readings(GEMM):
        _rewrite(Replacement(model, reading.node, taken), reading, packed)


def _rewrite(new: Replacement, reading: Reading, packed: PackedValues) -> None:
    node, dtype = reading.node, reading.dtype
    activation = node.inputs[0]
    assert activation is not None  # only C is optional
    if node.attributes.get_int("transA", 0):
        activation = new.add(ir.node("Transpose", [activation], {"perm": [1, 0]}), dtype)
    result = new.add(packed.node(contract.MATMUL, activation, node), dtype)
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha != 1.0:
        result = new.add(ir.node("Mul", [result, new.scalar(alpha, dtype, "alpha")]), dtype)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    beta = node.attributes.get_float("beta", 1.0)
    if bias is not None and beta != 0.0:
        if beta != 1.0:
            bias = new.add(ir.node("Mul", [bias, new.scalar(beta, dtype, "beta")]), dtype)
        new.add(ir.node("Add", [result, bias]), dtype)
    new.finish()
