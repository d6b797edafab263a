# SPDX-License-Identifier: Apache-2.0
"""Gather(W, indices) along axis 0 becomes BcqGather(indices, packed W), plus a Cast in float16 graphs."""

from __future__ import annotations

import onnx_ir as ir

from bcq import contract
from bcq.passes import naming
from bcq.passes.rewrite import Replacement
from bcq.passes.work import GATHER, Work


def rewrite_gather(model: ir.Model, work: Work) -> None:
    """Rewrites every Gather whose table was packed."""
    taken = naming.value_names(model)
    for reading, packed in work.packed_readings(GATHER):
        indices = reading.node.inputs[1]
        assert indices is not None  # Gather has no optional inputs
        new = Replacement(model, reading.node, taken)
        rows = new.add(packed.node(contract.GATHER, indices, reading.node), ir.DataType.FLOAT)
        if reading.dtype != ir.DataType.FLOAT:
            new.add(ir.node("Cast", [rows], {"to": reading.dtype.value}), reading.dtype)
        new.finish()
