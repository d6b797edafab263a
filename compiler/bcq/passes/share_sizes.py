# SPDX-License-Identifier: Apache-2.0
"""Each shape is computed once for the whole graph, and one that is known is a constant."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bcq.passes import naming
from bcq.passes.fuse_shared_input import constant
from bcq.passes.sizes import Sizes
from bcq.passes.work import Work


def share_sizes(model: ir.Model, work: Work) -> None:
    """Gives all readers of an integer tensor of sizes the first tensor with the same rank and elements."""
    sizes, taken = Sizes(model), naming.value_names(model)
    first: dict[tuple[int, tuple[int | str, ...]], ir.Value] = {}
    for node in list(model.graph):
        if node.domain != "" or node.op_type == "Constant" or len(node.outputs) != 1:
            continue
        value = node.outputs[0]
        content, shape = sizes.content(value), sizes.shape(value)
        if content is None or shape is None or value.is_graph_output() or not value.uses():
            continue
        numbers = sizes.numbers(value)
        key = (len(shape), content)
        if numbers is not None and key not in first:
            array = np.array(numbers, np.int64).reshape(len(numbers) if shape else ())
            first[key] = constant(model.graph, array, f"{value.name}_known", taken)
        kept = first.setdefault(key, value)
        if kept is not value:
            ir.convenience.replace_all_uses_with(value, kept)
