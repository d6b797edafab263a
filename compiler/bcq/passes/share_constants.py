# SPDX-License-Identifier: Apache-2.0
"""Equal small constants become one, so that nodes that read them can be seen to be equal."""

from __future__ import annotations

import onnx_ir as ir

from bcq.passes import naming
from bcq.passes.work import Work

_MOST = 8  # elements: shapes, axes, scalars
_EXACT = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


def share_constants(model: ir.Model, work: Work) -> None:
    """Merges small integers and nameless scalars of the main graph; parameters keep their names."""
    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if (
            tensor is None
            or value.is_graph_input()
            or value.is_graph_output()
            or not _is_small(value, tensor)
        ):
            continue
        array = tensor.numpy()
        kept = first.setdefault((tensor.dtype, array.shape, array.tobytes()), value)
        if kept is not value:
            ir.convenience.replace_all_uses_with(value, kept)
            del model.graph.initializers[name]


def _is_small(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype in _EXACT:
        return tensor.size <= _MOST and len(tensor.shape) <= 1
    return len(tensor.shape) == 0 and naming.is_nameless(value.name) and tensor.dtype.is_floating_point()
