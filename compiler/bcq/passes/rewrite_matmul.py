# SPDX-License-Identifier: Apache-2.0
"""MatMul(A, W) becomes BcqMatMul(A, packed W)."""

from __future__ import annotations

import onnx_ir as ir

from bcq import contract
from bcq.passes import naming
from bcq.passes.rewrite import Replacement
from bcq.passes.work import MATMUL, Work


def rewrite_matmul(model: ir.Model, work: Work) -> None:
    """Rewrites every MatMul whose right operand was packed."""
    taken = naming.value_names(model)
    for reading, packed in work.packed_readings(MATMUL):
        activation = reading.node.inputs[0]
        assert activation is not None  # MatMul has no optional inputs
        new = Replacement(model, reading.node, taken)
        new.add(packed.node(contract.MATMUL, activation, reading.node), reading.dtype)
        new.finish()
