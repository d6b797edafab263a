# SPDX-License-Identifier: Apache-2.0
"""The weights of an exported model as a checker sees them: read from the file, decoded by NumPy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bcq import contract, fused, packing
from bcq.bcq import Float32, ceil_div
from bcq.errors import InputError
from bcq.packing import PackedWeight
from bcq.precisions.files import ENCODER_FILE, MODEL_FILE, graph_file

INT8 = 4  # the accuracy_level of int8 activations
REPLACED_KEY = "bcq.adapter.dense"  # in the model's metadata: names of dense tensors of a task, as JSON
_SUFFIX = ".codes"
_SAME_VALUES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_ATTRIBUTE_TYPES = {"int": ir.AttributeType.INT, "string": ir.AttributeType.STRING}
_PARTS = ("codes", "alpha_1", "alpha_rest", "offset")


@dataclass(frozen=True)
class ExportedWeights:
    """Constants of an exported model; each is read from the disk when asked for.

    Attributes:
        packed: nodes' packed matrices, by the name of the matrix; each part of a fused one by its own.
        dense: every other initializer by its name, and each part of merged biases.
        matmuls: how many products with a packed matrix there are; a fused node counts for each of its parts.
        int8: whether a product may use int8 activations (accuracy_level 4).
        gather_rows: for each graph input that looks rows up in a constant, the fewest rows of these.
        replaced: dense tensors that a task has put in the place of the model's own.
    """

    packed: dict[str, PackedWeight]
    dense: dict[str, ir.TensorProtocol]
    matmuls: int
    int8: bool
    gather_rows: dict[str, int]
    replaced: frozenset[str] = frozenset()

    @classmethod
    def open(cls, folder: Path, bits: int | None = None) -> ExportedWeights:
        """Reads the structure of the graphs in a folder: one, or those of an encoder-decoder.

        Args:
            folder: an export.
            bits: the precision, of an export that serves several.

        Raises:
            InputError: as `bcq.frontends.onnx_file.load`; E109 for a BCQ node whose inputs do not fit, or
                whose attributes are not those of ``ops/contract.json``, and for a note about parts that
                does not fit its node.
        """
        first, second = (graph_file(folder, bits, name) for name in (MODEL_FILE, ENCODER_FILE))
        weights = cls._of(first)
        return weights._with(cls._of(second)) if second.is_file() else weights

    @classmethod
    def _of(cls, file: Path) -> ExportedWeights:
        from bcq.frontends import onnx_file

        model = onnx_file.load(file)
        nodes = [node for node in model.graph.all_nodes() if node.domain == contract.DOMAIN]
        for node in nodes:
            _check_node(node)
        packed: dict[str, PackedWeight] = {}
        parts: set[str | None] = set()
        for node in nodes:
            values = _constants(node)
            packed.update(_matrices(node, values))
            parts.update(tensor.name for tensor in values)
        dense = {
            name: value.const_value
            for name, value in model.graph.initializers.items()
            if value.const_value is not None and name not in parts
        }
        dense.update(_merged_biases(model))
        products = [node for node in nodes if node.op_type == contract.MATMUL.name]
        matmuls = sum(len(_note(node)) or 1 for node in products)
        int8 = any(node.attributes.get_int("accuracy_level") == INT8 for node in products)
        return cls(packed, dense, matmuls, int8, _gather_rows(model), _replaced(model))

    def _with(self, other: ExportedWeights) -> ExportedWeights:
        """Those of two graphs of a model."""
        rows = [*self.gather_rows.items(), *other.gather_rows.items()]
        return ExportedWeights(
            self.packed | other.packed,
            self.dense | other.dense,
            self.matmuls + other.matmuls,
            self.int8 or other.int8,
            {name: min(count for key, count in rows if key == name) for name, _ in rows},
            self.replaced | other.replaced,
        )

    def names(self) -> set[str]:
        """Names of all matrices and dense tensors."""
        return {*self.packed, *self.dense}

    def read(self, name: str) -> NDArray[Any]:
        """A matrix or tensor by its name, a packed one dequantized ``[N, K]``."""
        return self.dequantized(name) if name in self.packed else self.dense[name].numpy()

    def dequantized(self, name: str) -> Float32:
        """A packed matrix as float32 ``[N, K]``."""
        return packing.unpack(self.packed[name]).dequantize()


def _replaced(model: ir.Model) -> frozenset[str]:
    """Names in the note that an export with ``--adapter`` makes; a note that says anything else says none."""
    try:
        names = json.loads(model.metadata_props.get(REPLACED_KEY, "[]"))
    except (ValueError, RecursionError):
        return frozenset()
    return (
        frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()
    )


def _check_node(node: ir.Node) -> None:
    """Refuses an operator or an attribute that the contract does not know, and one that is missing."""
    op = contract.OPS.get(node.op_type)
    if op is None:
        raise _malformed(node, f"got this operator, expected one of {', '.join(contract.OPS)}")
    for name in node.attributes:
        if name not in op.attributes:
            raise _malformed(node, f"got attribute '{name}', which the operator does not have")
    for name, kind in op.attributes.items():
        found = node.attributes.get(name)
        if found is None or found.type != _ATTRIBUTE_TYPES[kind]:
            got = "none" if found is None else found.type.name
            raise _malformed(node, f"attribute '{name}': got {got}, expected {kind}")


def _constants(node: ir.Node) -> list[ir.TensorProtocol]:
    tensors = [value.const_value for value in node.inputs[1:] if value is not None]
    constants = [tensor for tensor in tensors if tensor is not None]
    if len(constants) != len(_PARTS) or not all(tensor.name for tensor in constants):
        raise _malformed(node, f"got {len(constants)} constant inputs, expected {', '.join(_PARTS)}")
    return constants


def _matrices(node: ir.Node, constants: list[ir.TensorProtocol]) -> dict[str, PackedWeight]:
    """The matrix of a node by its name; of a fused node, every part by its own."""
    whole, parts = _packed(node, constants), _note(node)
    if not parts:
        return {str(constants[0].name).removesuffix(_SUFFIX): whole}
    try:
        return dict(fused.take_parts(whole, parts))
    except ValueError as fault:
        raise _malformed(node, f"its note on parts: {fault}") from fault


def _note(node: ir.Node) -> list[fused.Part]:
    try:
        return fused.read_note(node.metadata_props)
    except ValueError as fault:
        raise _malformed(node, f"its note on parts: {fault}") from fault


def _merged_biases(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Each bias that was joined with others, by its own name."""
    found: dict[str, ir.TensorProtocol] = {}
    for node in model.graph:
        parts = _note(node) if node.domain == "" else []
        whole = next((value.const_value for value in node.inputs if value and value.const_value), None)
        if not parts or whole is None:
            continue
        array = whole.numpy()
        if array.shape != (sum(part.rows for part in parts),):
            raise _malformed(
                node, f"its note on parts: it does not fit a tensor of shape {list(array.shape)}"
            )
        for part in parts:
            found[part.name] = ir.Tensor(array[part.first : part.first + part.rows], name=part.name)
    return found


def _packed(node: ir.Node, constants: list[ir.TensorProtocol]) -> PackedWeight:
    arrays = {part: tensor.numpy() for part, tensor in zip(_PARTS, constants, strict=True)}
    sizes = {key: node.attributes.get_int(key, 0) or 0 for key in ("K", "N", "group_size", "bits")}
    for part, expected in _described(node, sizes).items():
        got = f"{arrays[part].dtype}{list(arrays[part].shape)}"
        if got not in expected:
            raise _malformed(node, f"{part}: got {got}, expected {' or '.join(expected)}")
    packed = PackedWeight(**arrays, inputs=sizes["K"], rows=sizes["N"], group_size=sizes["group_size"])
    if packed.code_hash() != node.attributes.get_string("code_hash", ""):
        raise _malformed(node, f"'{constants[0].name}' does not have the hash that the node records")
    return packed


def _described(node: ir.Node, sizes: dict[str, int]) -> dict[str, list[str]]:
    """Types and shapes that each part may have, by the attributes of the node."""
    rows, inputs, bits = sizes["N"], sizes["K"], sizes["bits"]
    if min(rows, inputs, sizes["group_size"]) < 1 or not contract.MIN_BITS <= bits <= contract.MAX_BITS:
        raise _malformed(node, f"got the attributes {sizes}")
    tile, tiles = contract.TILE_ROWS, ceil_div(rows, contract.TILE_ROWS)
    chunks, groups = ceil_div(inputs, contract.WORD_BITS), ceil_div(inputs, sizes["group_size"])
    planes = range(bits, contract.MAX_BITS + 1)
    factor = f"float16{[tiles, groups, tile]}"
    return {
        "codes": [f"uint32{[tiles, chunks, count, tile]}" for count in planes],
        "alpha_1": [factor],
        "alpha_rest": [f"float16{[tiles, groups, bits - 1, tile]}"],
        "offset": ["float16[0]", factor],
    }


def _gather_rows(model: ir.Model) -> dict[str, int]:
    rows: dict[str, int] = {}
    for node in model.graph.all_nodes():
        count, indices = _looked_up(node)
        name = _graph_input(indices)
        if count and name is not None:
            rows[name] = min(count, rows.get(name, count))
    return rows


def _looked_up(node: ir.Node) -> tuple[int, ir.Value | None]:
    """How many rows a node chooses from and the value that chooses; 0 when it is no look-up in a constant."""
    if node.domain == contract.DOMAIN and node.op_type == contract.GATHER.name:
        return node.attributes.get_int("N", 0) or 0, node.inputs[0]
    table = node.inputs[0].const_value if node.op_type == "Gather" and node.inputs[0] else None
    if table is None or not table.shape:
        return 0, None
    axis = node.attributes.get_int("axis", 0) or 0
    sizes = table.shape.numpy()
    return (sizes[axis] if -len(sizes) <= axis < len(sizes) else 0), node.inputs[1]


def _graph_input(value: ir.Value | None) -> str | None:
    """The graph input that a value is, when only its type or shape was changed on the way."""
    while value is not None and not value.is_graph_input():
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in _SAME_VALUES else None
    return None if value is None else value.name


def _malformed(node: ir.Node, detail: str) -> InputError:
    name = node.name or next((value.name for value in node.outputs if value.name), "")
    return InputError("E109", f"node '{name}' ({node.op_type}): {detail}.", "Export the model again.")
