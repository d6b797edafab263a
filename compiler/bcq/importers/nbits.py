# SPDX-License-Identifier: Apache-2.0
"""MatMulNBits, ONNX Runtime's operator for integer grids: what one node means, checked before it is read.

    B            uint8  [N, B, S q / 8]     fields of q bits along K; B = ceil(K / S) blocks of S inputs
    scales       float  [N, B]              (or flat), of the type of A
    zero_points  uint8  [N, ceil(B q / 8)]  fields of q bits along the blocks (or flat); or like `scales`;
                                            2^(q-1) when absent

W[n, k] = (v[n, k] - z[n, k / S]) scales[n, k / S]. Source: the operator's schema in onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bcq.bcq import Float32, Words, ceil_div
from bcq.errors import BcqError, InputError, UnsupportedError
from bcq.importers.factors import Scales
from bcq.importers.fields import planes_of, unpack_fields
from bcq.importers.source import check_group_size

DOMAIN, OP = "com.microsoft", "MatMulNBits"
BITS = (2, 4, 8)
LEVELS = (0, 1, 2, 3, 4)  # accuracy_level
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_MOST = 2**31 - 1
_BIAS, _INPUTS = 5, 6
_AGAIN = "Export the model again."


@dataclass(frozen=True)
class NbitsMatrix:
    """The matrix of one node.

    Attributes:
        rows: N.
        inputs: K.
        bits: q.
        group_size: g: the block size, or K where one block holds a row.
        accuracy_level: of the node.
        levels: B.
        scales: as stored.
        zeros: as stored, or None.
    """

    rows: int
    inputs: int
    bits: int
    group_size: int
    accuracy_level: int
    levels: ir.TensorProtocol
    scales: ir.TensorProtocol
    zeros: ir.TensorProtocol | None

    @property
    def dtype(self) -> ir.DataType:
        """Element type of the activations."""
        return self.scales.dtype

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return ceil_div(self.inputs, self.group_size)

    def tensors(self) -> list[ir.TensorProtocol]:
        """What the node stores."""
        return [self.levels, self.scales, *([] if self.zeros is None else [self.zeros])]

    def read_scales(self) -> Scales:
        """Its factors."""
        shape = (self.rows, self.blocks)
        zeros: NDArray[np.number] = np.full(shape, 2 ** (self.bits - 1))
        if self.zeros is not None and self.zeros.dtype == ir.DataType.UINT8:
            zeros = unpack_fields(self.zeros.numpy().reshape(self.rows, -1), self.bits, self.blocks)
        elif self.zeros is not None:
            zeros = self.zeros.numpy().reshape(shape)
        return Scales.of_grid(self.scales.numpy().reshape(shape), zeros, self.bits)

    def read_words(self) -> Words:
        """Its planes, uint32 ``[q, N, ceil(K / 32)]``."""
        stored = self.levels.numpy().reshape(self.rows, -1)
        return planes_of(unpack_fields(stored, self.bits, self.inputs), self.bits)

    def read_dense(self) -> Float32:
        """Its weights ``[N, K]``."""
        levels = unpack_fields(self.levels.numpy().reshape(self.rows, -1), self.bits, self.inputs)
        scales, group_of = self.read_scales(), np.arange(self.inputs) // self.group_size
        step = 2 * scales.alpha[-1]
        lowest = scales.offset - step * ((2**self.bits - 1) / 2)
        dense: Float32 = (levels * step[:, group_of] + lowest[:, group_of]).astype(np.float32)
        return dense


def is_nbits(node: ir.Node) -> bool:
    """Whether a node is a MatMulNBits."""
    return node.domain == DOMAIN and node.op_type == OP


def bias_of(node: ir.Node) -> ir.Value | None:
    """The bias that a node adds, if any."""
    return node.inputs[_BIAS] if len(node.inputs) > _BIAS else None


def read_node(node: ir.Node, graph: ir.Graph) -> NbitsMatrix:
    """Checks a node and describes its matrix; no weight is read.

    Args:
        node: a MatMulNBits.
        graph: the main graph of its model.

    Raises:
        InputError: E109 for attributes or tensors that do not fit together.
        UnsupportedError: E401 for a valid node that has no BCQ form.
    """
    if node.graph is not graph:
        raise refuse(node, "it lies in a subgraph (a branch or loop body)")
    rows, inputs = (_size(node, name, 1) for name in ("N", "K"))
    bits, block = _size(node, "bits", 2, default=4), _size(node, "block_size", 16)
    level = _size(node, "accuracy_level", 0, default=0)
    if block & (block - 1) or level not in LEVELS or not 3 <= len(node.inputs) <= _INPUTS:
        raise malformed(node, f"block_size {block}, accuracy_level {level}, {len(node.inputs)} inputs")
    if bits not in BITS:
        raise refuse(
            node, f"it has {bits} bits; onnxruntime and this program take {', '.join(map(str, BITS))}"
        )
    if node.attributes.get_int("weight_prepacked", 0):
        raise refuse(node, "its weights are laid out for one GPU (weight_prepacked)")
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        raise refuse(node, "it has another order of inputs (g_idx), which onnxruntime has deprecated")
    blocks = ceil_div(inputs, block)
    try:
        check_group_size(_name(node), block if blocks > 1 else inputs, inputs)
    except UnsupportedError as fault:
        raise refuse(node, f"its block_size is {block}, expected a multiple of 32", fault.hint) from fault
    matrix = NbitsMatrix(
        rows=rows,
        inputs=inputs,
        bits=bits,
        group_size=block if blocks > 1 else inputs,
        accuracy_level=level,
        levels=_constant(node, 1, "B"),
        scales=_constant(node, 2, "scales"),
        zeros=_constant(node, 3, "zero_points") if len(node.inputs) > 3 and node.inputs[3] else None,
    )
    _check_tensors(node, matrix, block)
    return matrix


def refuse(node: ir.Node, reason: str, hint: str = "") -> BcqError:
    """E401: a valid node that is not handled."""
    return UnsupportedError("E401", f"{node.op_type} '{_name(node)}': {reason}.", hint)


def malformed(node: ir.Node, reason: str) -> BcqError:
    """E109: a node that nobody can run."""
    return InputError("E109", f"{node.op_type} '{_name(node)}': {reason}.", _AGAIN)


def _check_tensors(node: ir.Node, matrix: NbitsMatrix, block: int) -> None:
    rows, blocks, bits = matrix.rows, matrix.blocks, matrix.bits
    if matrix.scales.dtype not in _FLOATS:
        raise refuse(node, f"its scales are {matrix.scales.dtype.name.lower()}, expected float or float16")
    _check(node, "B", matrix.levels, ir.DataType.UINT8, [(rows, blocks, block * bits // 8)])
    _check(node, "scales", matrix.scales, matrix.dtype, [(rows, blocks), (rows * blocks,)])
    zeros = matrix.zeros
    if zeros is not None and zeros.dtype == ir.DataType.UINT8:
        width = ceil_div(blocks * bits, 8)
        _check(node, "zero_points", zeros, zeros.dtype, [(rows, width), (rows * width,)])
    elif zeros is not None:
        _check(node, "zero_points", zeros, matrix.dtype, [(rows, blocks), (rows * blocks,)])


def _check(
    node: ir.Node,
    what: str,
    tensor: ir.TensorProtocol,
    dtype: ir.DataType,
    shapes: list[tuple[int, ...]],
) -> None:
    shape = tuple(tensor.shape.numpy())
    if tensor.dtype != dtype or shape not in shapes:
        got = f"{tensor.dtype.name.lower()}{list(shape)}"
        raise malformed(node, f"{what}: got {got}, expected {dtype.name.lower()}{list(shapes[0])}")


def _size(node: ir.Node, name: str, least: int, default: int | None = None) -> int:
    attribute = node.attributes.get(name)
    if attribute is None and default is not None:
        return default
    if attribute is None or attribute.type != ir.AttributeType.INT or attribute.is_ref():
        raise malformed(node, f"attribute {name}: got {'none' if attribute is None else 'no number'}")
    value = attribute.as_int()
    if not least <= value <= _MOST:
        raise malformed(node, f"attribute {name}: got {value}, expected {least} or more")
    return value


def _constant(node: ir.Node, index: int, what: str) -> ir.TensorProtocol:
    value = node.inputs[index]
    if value is None:
        raise malformed(node, f"{what}: got nothing, expected a tensor")
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise refuse(node, f"{what} ('{value.name}') is no constant: it may change at run time")
    return tensor


def _name(node: ir.Node) -> str:
    return str(node.name or node.outputs[0].name)
