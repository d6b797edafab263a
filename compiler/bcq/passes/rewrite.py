# SPDX-License-Identifier: Apache-2.0
"""What the rewriting passes share: a node replaced by others, a scalar, a value with a name of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bcq.passes import naming


class Replacement:
    """Nodes that take the place of one node of the main graph; its result keeps name, type and shape.

    Args:
        model: the model that holds the node.
        old: the node to replace; it has one output.
        taken: names of values in the model; new ones are added.
    """

    def __init__(self, model: ir.Model, old: ir.Node, taken: set[str]) -> None:
        self._graph = model.graph
        self._old = old
        self._taken = taken
        self._nodes: list[ir.Node] = []

    def add(self, node: ir.Node, dtype: ir.DataType) -> ir.Value:
        """Appends a node with one output; returns that output, named after the old node's."""
        output = node.outputs[0]
        output.name = naming.fresh(f"{self._old.outputs[0].name}_{node.op_type.lower()}", self._taken)
        output.type = ir.TensorType(dtype)
        node.metadata_props.update(self._old.metadata_props)
        self._nodes.append(node)
        return output

    def scalar(self, value: float, dtype: ir.DataType, what: str) -> ir.Value:
        """A constant of rank 0 as an initializer."""
        name = naming.fresh(f"{self._old.outputs[0].name}_{what}", self._taken)
        tensor = ir.Tensor(np.array(value, dtype=dtype.numpy()), name=name)
        constant = ir.Value(name=name, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
        self._graph.register_initializer(constant)
        return constant

    def finish(self) -> None:
        """Puts the nodes into the graph; the last one gives the old node's result."""
        ir.convenience.replace_nodes_and_values(
            self._graph,
            self._old,
            [self._old],
            self._nodes,
            [self._old.outputs[0]],
            [self._nodes[-1].outputs[0]],
        )
