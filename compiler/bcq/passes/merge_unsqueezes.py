# SPDX-License-Identifier: Apache-2.0
"""An Unsqueeze of an Unsqueeze adds all axes at once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bcq.passes.fuse_shared_input import constant
from bcq.passes.naming import value_names
from bcq.passes.sizes import Sizes
from bcq.passes.work import Work


def merge_unsqueezes(model: ir.Model, work: Work) -> None:
    """Lets the outer one read the inner one's input."""
    sizes, taken = Sizes(model), value_names(model)
    for outer in model.graph:
        inner = outer.inputs[0].producer() if _adds_axes(outer) and outer.inputs[0] is not None else None
        if inner is None or not _adds_axes(inner):
            continue
        source, middle = sizes.shape(inner.inputs[0]), sizes.shape(inner.outputs[0])
        result = sizes.shape(outer.outputs[0])
        first, second = _axes(inner), _axes(outer)
        if source is None or middle is None or result is None or first is None or second is None:
            continue
        axes = _both(first, len(middle), second, len(result))
        outer.replace_input_with(0, inner.inputs[0])
        name = f"{outer.outputs[0].name}_axes"
        outer.replace_input_with(1, constant(model.graph, np.array(axes, np.int64), name, taken))


def _adds_axes(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type == "Unsqueeze" and len(node.inputs) == 2


def _axes(node: ir.Node) -> list[int] | None:
    axes = node.inputs[1]
    tensor = None if axes is None or axes.is_graph_input() else axes.const_value
    return None if tensor is None else [int(axis) for axis in tensor.numpy()]


def _both(first: list[int], middle: int, second: list[int], result: int) -> list[int]:
    """Axes of the result that either added."""
    outer = {axis % result for axis in second}
    kept = [axis for axis in range(result) if axis not in outer]
    return sorted(outer | {kept[axis % middle] for axis in first})
