# SPDX-License-Identifier: Apache-2.0
"""A Reshape that keeps its leading sizes takes a constant target, with zeros for what it keeps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bcq.passes.fuse_shared_input import constant
from bcq.passes.naming import value_names
from bcq.passes.sizes import Dims, Sizes
from bcq.passes.work import Work


def constant_targets(model: ir.Model, work: Work) -> None:
    """Rewrites targets that are computed at run time; at most one size may be left to the Reshape itself."""
    sizes, taken = Sizes(model), value_names(model)
    for node in list(model.graph):
        if node.domain != "" or node.op_type != "Reshape" or sizes.numbers(node.inputs[1]) is not None:
            continue
        before, after = sizes.shape(node.inputs[0]), sizes.shape(node.outputs[0])
        target = None if before is None or after is None else target_of(before, after)
        if target is not None:
            value = constant(model.graph, np.array(target, np.int64), f"{node.outputs[0].name}_shape", taken)
            node.replace_input_with(1, value)
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def target_of(before: Dims, after: Dims) -> list[int] | None:
    """The constant target that leads from one shape to the other; None when there is none."""
    target: list[int] = []
    for axis, dim in enumerate(after):
        if isinstance(dim, int):
            target.append(dim)
        else:
            target.append(0 if axis < len(before) and before[axis] == dim else -1)
    zeros = any(dim == 0 for dim in after)  # a size of zero cannot be told from one that is kept
    return None if zeros or target.count(-1) > 1 else target
