# SPDX-License-Identifier: Apache-2.0
"""Makes the tensors that tasks replace inputs of the graph, with the base's values as defaults.

Dense ones are opened before the other passes, which then leave them apart; factors are opened behind them,
where fused products have joined theirs already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bcq import contract, fused
from bcq.adapters.adapter import Adapter
from bcq.adapters.slots import DENSE, Slot, Slots
from bcq.files.base import QuantizedBase
from bcq.passes.adapted import parameter

_PORTS = tuple(port.name for port in contract.MATMUL.inputs)
_SUFFIX = f".{_PORTS[1]}"


def open_dense_slots(model: ir.Model, adapters: Sequence[Adapter]) -> list[Slot]:
    """Opens every dense tensor that an adapter replaces.

    Raises:
        InputError: E302 for one that the graph does not read.
    """
    found = {name: parameter(model, adapter, name) for adapter in adapters for name in adapter.dense}
    slots = []
    for name in sorted(found):
        model.graph.inputs.append(found[name])
        slots.append(_slot(found[name], DENSE, ((name, 1),)))
    return slots


def open_slots(
    model: ir.Model, base: QuantizedBase, adapters: Sequence[Adapter], dense: Sequence[Slot]
) -> Slots:
    """Opens alpha_1 of every product, and whatever factors an adapter holds besides.

    Args:
        model: a packed graph.
        base: what it was made of.
        adapters: which tasks it shall serve.
        dense: slots that are open already.
    """
    held = {
        (part, stored) for adapter in adapters for stored in adapter.alphas
        for part in adapter.alphas[stored].tensors()
    }  # fmt: skip
    found = list(dense)
    for node in model.graph:
        if node.domain != contract.DOMAIN:
            continue
        owners = _owners(node, base)
        for part, value in zip(_PORTS[2:], node.inputs[2:], strict=True):
            assert value is not None
            always = part == "alpha_1" and node.op_type == contract.MATMUL.name
            if value.is_graph_input() or not (always or any((part, stored) in held for stored, _ in owners)):
                continue
            model.graph.inputs.append(value)
            found.append(_slot(value, part, owners))
    slots = Slots(base.base_hash, tuple(found))
    _mark(model, slots.mark)
    return slots


def _owners(node: ir.Node, base: QuantizedBase) -> tuple[tuple[str, int], ...]:
    """Stored name and rows of each matrix in a node."""
    codes = node.inputs[1]
    assert codes is not None
    parts = fused.read_note(node.metadata_props)
    rows = [(part.name, part.rows) for part in parts] or [
        (str(codes.name).removesuffix(_SUFFIX), node.attributes["N"].as_int())
    ]
    return tuple((_stored(base, name), count) for name, count in rows)


def _stored(base: QuantizedBase, name: str) -> str:
    matrix = base.find(name)
    assert matrix is not None  # it was packed from the base
    return matrix.stored


def _slot(value: ir.Value, part: str, owners: tuple[tuple[str, int], ...]) -> Slot:
    tensor = value.const_value
    assert tensor is not None
    default = tensor.numpy() if len(owners) > 1 else None
    shape = tuple(tensor.shape.numpy())
    return Slot(str(value.name), part, owners, np.dtype(tensor.dtype.numpy()).name, shape, default)


def _mark(model: ir.Model, name: str) -> None:
    """An input that nobody reads: onnxruntime refuses an adapter file that names one which is not there."""
    tensor = ir.Tensor(np.zeros(1, np.uint8), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([1]), const_value=tensor)
    model.graph.register_initializer(value)
    model.graph.inputs.append(value)
