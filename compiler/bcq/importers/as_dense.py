# SPDX-License-Identifier: Apache-2.0
"""MatMulNBits(A, W) as a MatMul with the numbers that W stands for, and an Add of the bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bcq.importers.nbits import bias_of, is_nbits, read_node
from bcq.passes import naming
from bcq.passes.rewrite import Replacement


def dense_products(model: ir.Model) -> None:
    """Rewrites every MatMulNBits of a model in place; others stay as they are.

    Raises:
        InputError: E109 for a node that nobody can run.
        UnsupportedError: E401 for a node whose matrix is no constant, or that lies in a subgraph.
    """
    taken = naming.value_names(model)
    for node in [node for node in model.graph.all_nodes() if is_nbits(node)]:
        matrix, activation, bias = read_node(node, model.graph), node.inputs[0], bias_of(node)
        assert activation is not None  # it is no optional input
        values = np.ascontiguousarray(matrix.read_dense().T, matrix.dtype.numpy())
        name = naming.fresh(f"{matrix.levels.name}.dense", taken)
        tensor = ir.Tensor(values, name=name)
        weight = ir.Value(name=name, type=ir.TensorType(matrix.dtype), shape=tensor.shape, const_value=tensor)
        model.graph.register_initializer(weight)
        new = Replacement(model, node, taken)
        result = new.add(ir.node("MatMul", [activation, weight]), matrix.dtype)
        if bias is not None:
            new.add(ir.node("Add", [result, bias]), matrix.dtype)
        new.finish()
