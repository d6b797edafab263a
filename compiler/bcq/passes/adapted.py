# SPDX-License-Identifier: Apache-2.0
"""A base with one task's factors and tensors in the place of its own: what ``--adapter`` exports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bcq.adapters.adapter import Adapter
from bcq.errors import InputError
from bcq.files.base import QuantizedBase
from bcq.packing import PackedWeight
from bcq.passes.weights import FromBase, Left, MatrixRef


class FromAdapted(FromBase):
    """Takes codes from a base and factors from an adapter, where it has some.

    Args:
        base: an opened base.
        adapter: fits the base.
    """

    def __init__(self, base: QuantizedBase, adapter: Adapter) -> None:
        super().__init__(base)
        self.adapter = adapter
        self._known = {}  # how far the values are from those before the task tells nothing

    def pack(self, matrix: MatrixRef) -> PackedWeight | Left:
        """The base's matrix of the same name with the task's factors."""
        packed, known = super().pack(matrix), self.base.find(matrix.name)
        if isinstance(packed, Left) or known is None or known.stored not in self.adapter.alphas:
            return packed
        return self.adapter.alphas[known.stored].applied(packed)


def replace_dense(models: Sequence[ir.Model], adapter: Adapter) -> None:
    """Gives the parameters of a model's graphs the task's dense tensors.

    Raises:
        InputError: E302 for a tensor that no graph reads.
    """
    for name, array in adapter.dense.items():
        readers = [model for model in models if name in model.graph.initializers]
        for model in readers or models[:1]:
            value = parameter(model, adapter, name)
            assert value.dtype is not None  # the exporter types every parameter
            value.const_value = ir.Tensor(np.ascontiguousarray(array, value.dtype.numpy()), name=name)


def parameter(model: ir.Model, adapter: Adapter, name: str) -> ir.Value:
    """The graph's parameter that a dense tensor of an adapter replaces.

    Raises:
        InputError: E302 when there is none.
    """
    value = model.graph.initializers.get(name)
    if value is None:
        raise InputError(
            "E302",
            f"adapter '{adapter.name}' does not fit: it replaces '{name}', which the graph does not read.",
        )
    return value
