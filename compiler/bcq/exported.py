# SPDX-License-Identifier: Apache-2.0
"""The weights of an exported model as a checker sees them: read from the file, decoded by NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from bcq import contract, packing
from bcq.bcq import Float32
from bcq.errors import InputError
from bcq.packing import PackedWeight

MODEL_FILE = "model.onnx"
_SUFFIX = ".codes"
_SAME_VALUES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_PARTS = ("codes", "alpha_1", "alpha_rest", "offset")


@dataclass(frozen=True)
class ExportedWeights:
    """Constants of an exported model; each is read from the disk when asked for.

    Attributes:
        packed: nodes' packed matrices, by the name of the matrix.
        dense: every other initializer by its name.
        matmuls: how many nodes multiply with a packed matrix.
        gather_rows: for each graph input that looks rows up in a packed matrix, the fewest rows of these.
    """

    packed: dict[str, PackedWeight]
    dense: dict[str, ir.TensorProtocol]
    matmuls: int
    gather_rows: dict[str, int]

    @classmethod
    def open(cls, folder: Path) -> ExportedWeights:
        """Reads the structure of ``model.onnx`` in a folder.

        Raises:
            InputError: as `bcq.frontends.onnx_file.load`; E109 for a BCQ node whose inputs do not fit.
        """
        from bcq.frontends import onnx_file

        model = onnx_file.load(folder / MODEL_FILE)
        nodes = [node for node in model.graph.all_nodes() if node.domain == contract.DOMAIN]
        packed: dict[str, PackedWeight] = {}
        parts: set[str | None] = set()
        for node in nodes:
            values = _constants(node)
            packed[str(values[0].name).removesuffix(_SUFFIX)] = _packed(node, values)
            parts.update(tensor.name for tensor in values)
        dense = {
            name: value.const_value
            for name, value in model.graph.initializers.items()
            if value.const_value is not None and name not in parts
        }
        matmuls = sum(node.op_type == contract.MATMUL.name for node in nodes)
        return cls(packed, dense, matmuls, _gather_rows(nodes))

    def names(self) -> set[str]:
        """Names of all matrices and dense tensors."""
        return {*self.packed, *self.dense}

    def dequantized(self, name: str) -> Float32:
        """A packed matrix as float32 ``[N, K]``."""
        return packing.unpack(self.packed[name]).dequantize()


def _constants(node: ir.Node) -> list[ir.TensorProtocol]:
    tensors = [value.const_value for value in node.inputs[1:] if value is not None]
    constants = [tensor for tensor in tensors if tensor is not None]
    if len(constants) != len(_PARTS) or not all(tensor.name for tensor in constants):
        raise _malformed(node, f"got {len(constants)} constant inputs, expected {', '.join(_PARTS)}")
    return constants


def _packed(node: ir.Node, constants: list[ir.TensorProtocol]) -> PackedWeight:
    arrays = {part: tensor.numpy() for part, tensor in zip(_PARTS, constants, strict=True)}
    sizes = {key: node.attributes.get_int(key, 0) or 0 for key in ("K", "N", "group_size")}
    packed = PackedWeight(**arrays, inputs=sizes["K"], rows=sizes["N"], group_size=sizes["group_size"])
    if packed.code_hash() != node.attributes.get_string("code_hash", ""):
        raise _malformed(node, f"'{constants[0].name}' does not have the hash that the node records")
    return packed


def _gather_rows(nodes: list[ir.Node]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for node in nodes:
        name = _graph_input(node.inputs[0])
        if node.op_type == contract.GATHER.name and name is not None:
            count = node.attributes.get_int("N", 0) or 0
            rows[name] = min(count, rows.get(name, count))
    return rows


def _graph_input(value: ir.Value | None) -> str | None:
    """The graph input that a value is, when only its type or shape was changed on the way."""
    while value is not None and not value.is_graph_input():
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in _SAME_VALUES else None
    return None if value is None else value.name


def _malformed(node: ir.Node, detail: str) -> InputError:
    return InputError("E109", f"node '{node.name}' ({node.op_type}): {detail}.", "Export the model again.")
