# SPDX-License-Identifier: Apache-2.0
"""BcqMatMul becomes MatMulNBits, exactly or by the nearest grid; BcqGather becomes a dense Gather."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from bcq import contract, packing
from bcq.bcq import BcqWeight, check_group_size
from bcq.errors import UnsupportedError
from bcq.files.base import BaseMatrix
from bcq.fused import NOTE
from bcq.importers.as_grid import Blocks, blocks_of, levels_of
from bcq.importers.nbits import DOMAIN, OP, malformed, refuse
from bcq.importers.nearest import Nearest, nearest, nearest_levels
from bcq.importers.result import ImportedMatrix
from bcq.packing import PackedWeight
from bcq.passes import MatrixRecord, naming
from bcq.passes.rewrite import Replacement
from bcq.progress import Progress

_PARTS = ("codes", "alpha_1", "alpha_rest", "offset")
_TYPES = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16}


def rewrite(
    model: ir.Model, progress: Progress, nearest_bits: int | None = None
) -> tuple[list[MatrixRecord], list[ImportedMatrix]]:
    """Rewrites a packed model in place.

    Args:
        model: the model.
        progress: told once a matrix.
        nearest_bits: 4 or 8 to take the nearest grid where factors are none; None refuses such factors.

    Returns:
        What became of the matrix of each node, and how well those of products were taken over.

    Raises:
        InputError: E109 for a node whose tensors do not fit its attributes.
        UnsupportedError: E401 for a file without BCQ nodes, E403 for factors that are no integer grid.
    """
    nodes = [node for node in model.graph.all_nodes() if node.domain == contract.DOMAIN]
    if not nodes:
        raise UnsupportedError(
            "E401", "the model has no BCQ operator: there is nothing to turn back.", "Give an export."
        )
    if any(_activation(node) is None for node in nodes):
        common.ShapeInferencePass()(model)
    taken, records, results = naming.value_names(model), [], []
    progress.start("import", len(nodes))
    for node in nodes:
        record, result = _rewrite_node(model, node, taken, nearest_bits)
        records.append(record)
        results += [] if result is None else [result]
        progress.step(record.name, f"{record.bits} bits" if record.bits else record.reason)
    progress.done()
    _forget(model)
    return records, results


def _rewrite_node(
    model: ir.Model, node: ir.Node, taken: set[str], nearest_bits: int | None
) -> tuple[MatrixRecord, ImportedMatrix | None]:
    if node.graph is not model.graph:
        raise refuse(node, "it lies in a subgraph (a branch or loop body)")
    name = str(node.inputs[1].name if node.inputs[1] else "").removesuffix(".codes")
    packed, constants = _packed(node), list(node.inputs[1:])
    new = Replacement(model, node, taken)
    if node.op_type == contract.GATHER.name:
        record, result = _gather(new, model.graph, node, packed, name, taken), None
    else:
        record, result = _matmul(new, model.graph, node, packed, name, taken, nearest_bits)
    new.finish()
    for value in constants:
        if value is not None and not value.uses():
            model.graph.initializers.pop(str(value.name), None)
    return record, result


def _matmul(
    new: Replacement,
    graph: ir.Graph,
    node: ir.Node,
    packed: PackedWeight,
    name: str,
    taken: set[str],
    nearest_bits: int | None,
) -> tuple[MatrixRecord, ImportedMatrix]:
    dtype = _activation(node)
    if dtype not in _TYPES:
        raise refuse(node, f"the type of its activations is {dtype}, expected float or float16")
    numbers = _TYPES[dtype]
    weight, who = packing.unpack(packed), f"{node.op_type} '{node.name or node.outputs[0].name}'"
    found = _grid(weight, who, numbers, nearest_bits)
    blocks = found.blocks if isinstance(found, Nearest) else found
    rows, count = blocks.scales.shape
    shape = (rows, count, blocks.block_size * blocks.bits // 8)
    inputs = [
        node.inputs[0],
        _initializer(graph, _levels(packed, found, shape), f"{name}.levels", taken),
        _initializer(graph, ir.Tensor(blocks.scales.astype(numbers)), f"{name}.scales", taken),
    ]
    if blocks.zeros is not None:
        inputs.append(_initializer(graph, ir.Tensor(blocks.zeros), f"{name}.zero_points", taken))
    attributes = {
        "K": packed.inputs, "N": packed.rows, "bits": blocks.bits, "block_size": blocks.block_size,
        "accuracy_level": node.attributes["accuracy_level"].as_int(),
    }  # fmt: skip
    made = ir.node(OP, inputs, attributes=attributes, domain=DOMAIN, name=node.name)
    new.add(made, dtype)
    made.metadata_props.pop(NOTE, None)
    stored = int(np.prod(shape)) + rows * count * np.dtype(numbers).itemsize
    stored += 0 if blocks.zeros is None else blocks.zeros.nbytes
    record = _record(name, OP, packed, blocks.bits, blocks.block_size, stored, "")
    if not isinstance(found, Nearest):
        return record, ImportedMatrix(name, blocks.bits)
    result = ImportedMatrix(name, blocks.bits, False, found.worst, found.relative_error)
    return replace(record, relative_error=found.relative_error), result


def _grid(
    weight: BcqWeight, who: str, dtype: type[np.floating[Any]], nearest_bits: int | None
) -> Blocks | Nearest:
    """The grid that a weight is; else the nearest one, if that is allowed."""
    try:
        return blocks_of(weight, who, dtype)
    except UnsupportedError:
        if nearest_bits is None:
            raise
    return nearest(weight, nearest_bits, who, dtype)


def _gather(
    new: Replacement, graph: ir.Graph, node: ir.Node, packed: PackedWeight, name: str, taken: set[str]
) -> MatrixRecord:
    shape = (packed.rows, packed.inputs)
    table = ir.LazyTensor(
        partial(_dense, packed), dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=f"{name}.table"
    )
    made = ir.node(
        "Gather", [_initializer(graph, table, f"{name}.table", taken), node.inputs[0]], name=node.name
    )
    new.add(made, ir.DataType.FLOAT)
    reason = "a look-up, which MatMulNBits cannot do: the values that its planes stand for"
    return _record(name, "gather", packed, None, 0, 0, reason)


def _levels(packed: PackedWeight, found: Blocks | Nearest, shape: tuple[int, ...]) -> ir.LazyTensor:
    """B, made when it is written, so that one is in memory at a time."""

    def make() -> ir.TensorProtocol:
        weight = packing.unpack(packed)
        levels = nearest_levels(weight, found) if isinstance(found, Nearest) else levels_of(weight, found)
        return ir.Tensor(levels)

    return ir.LazyTensor(make, dtype=ir.DataType.UINT8, shape=ir.Shape(shape))


def _dense(packed: PackedWeight) -> ir.TensorProtocol:
    return ir.Tensor(packing.unpack(packed).dequantize())


def _record(
    name: str, kind: str, packed: PackedWeight, bits: int | None, group: int, stored: int, reason: str
) -> MatrixRecord:
    return MatrixRecord(
        name=name,
        kinds=(kind,),
        rows=packed.rows,
        inputs=packed.inputs,
        bits=bits,
        group_size=group,
        dense_bytes=4 * packed.rows * packed.inputs,
        packed_bytes=stored,
        reason=reason,
    )


def _packed(node: ir.Node) -> PackedWeight:
    """The packed matrix of a node, its tensors checked against its attributes."""
    arrays: dict[str, NDArray[Any]] = {}
    for part, value in zip(_PARTS, node.inputs[1:], strict=True):
        tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
        if tensor is None:
            raise refuse(node, f"its {part} may be fed at run time", "Export one task without adapters.")
        arrays[part] = tensor.numpy()
    sizes = {key: node.attributes[key].as_int() for key in ("K", "N", "bits", "group_size")}
    _check_sizes(node, sizes, arrays)
    packed = PackedWeight(**arrays, inputs=sizes["K"], rows=sizes["N"], group_size=sizes["group_size"])
    if packed.code_hash() != node.attributes["code_hash"].as_string():
        raise malformed(node, "its codes do not have the hash that it records")
    return packed


def _check_sizes(node: ir.Node, sizes: dict[str, int], arrays: dict[str, NDArray[Any]]) -> None:
    try:
        check_group_size(sizes["group_size"], sizes["K"])
    except ValueError as fault:
        raise malformed(node, str(fault)) from fault
    if sizes["N"] < 1 or not contract.MIN_BITS <= sizes["bits"] <= contract.MAX_BITS:
        raise malformed(node, f"N is {sizes['N']}, bits is {sizes['bits']}")
    expected = BaseMatrix(
        stored="", name="", kind="", rows=sizes["N"], inputs=sizes["K"], bits=sizes["bits"],
        group_size=sizes["group_size"], offset=arrays["offset"].size > 0, transposed=False,
        tied=(), code_hash="",
    ).specs()  # fmt: skip
    for part, spec in zip(_PARTS, expected.values(), strict=True):
        array = arrays[part]
        kind = np.uint32 if part == "codes" else np.float16
        if array.shape != spec.shape or array.dtype != kind:
            raise malformed(
                node, f"{part}: got {array.dtype}{list(array.shape)}, expected {list(spec.shape)}"
            )


def _activation(node: ir.Node) -> ir.DataType | None:
    value = node.outputs[0] if node.op_type == contract.GATHER.name else node.inputs[0]
    known = None if value is None else value.dtype
    return known if known is not None else node.outputs[0].dtype


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol, name: str, taken: set[str]) -> ir.Value:
    own = naming.fresh(name, taken)
    tensor.name = own
    value = ir.Value(
        name=own, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _forget(model: ir.Model) -> None:
    """Removes the operators' functions, their domain and our notes."""
    for key in [key for key in model.functions if key[0] == contract.DOMAIN]:
        del model.functions[key]
    model.opset_imports.pop(contract.DOMAIN, None)
    model.opset_imports.setdefault(DOMAIN, 1)
    for node in model.graph:
        node.metadata_props.pop(NOTE, None)
