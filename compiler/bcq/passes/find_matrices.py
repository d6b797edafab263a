# SPDX-License-Identifier: Apache-2.0
"""Finds every constant matrix that the graph multiplies with or looks rows up in."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from bcq import contract
from bcq.passes import naming, trace
from bcq.passes.weights import MatrixRef
from bcq.passes.work import GATHER, GEMM, MATMUL, Matrix, Reading, Work

_SPELLING = {ir.DataType.FLOAT: "float32"}  # where ONNX's name of a type is not the contract's
_MIN_BATCHED = (
    16  # a constant of three dimensions counts as matrices when its last two are at least this long
)

# Operators that multiply with a constant matrix but are not rewritten: they count, so that no one is misled.
_OTHER_MATRIX_OPS = frozenset(
    {"Einsum", "FusedMatMul", "FusedGemm", "TransposeMatMul", "Attention", "EmbedLayerNormalization"}
)


@dataclass
class _Readers:
    """All readers of one stored constant, by orientation (True: stored ``[K, N]``)."""

    readings: dict[bool, list[Reading]] = field(default_factory=dict)
    dense: list[str] = field(default_factory=list)
    first: ir.Node | None = None
    kinds: dict[str, None] = field(default_factory=dict)


def find_matrices(model: ir.Model, work: Work) -> None:
    """Fills ``work.matrices`` in the order in which the graph reads them."""
    order = {node: place for place, node in enumerate(model.graph.all_nodes())}
    found: list[tuple[int, Matrix]] = []
    for value, tensor in trace.constants(model):
        readers = _readers_of(value, tensor, model)
        if readers.first is not None:
            for matrix in _matrices(value, tensor, readers):
                found.append((order[readers.first], matrix))
    found.sort(key=lambda entry: entry[0])
    work.matrices = [matrix for _, matrix in found]


def _readers_of(value: ir.Value, tensor: ir.TensorProtocol, model: ir.Model) -> _Readers:
    readers = _Readers()
    for use in trace.uses(value, tensor.dtype):
        kind = matrix_kind(use)
        if kind is not None and _is_matrix(tensor, kind):
            readers.first = readers.first or use.node
            readers.kinds[kind] = None
        reason = _reason_against(use, kind, value, tensor, model)
        if reason:
            readers.dense.append(reason)
        else:
            assert use.node is not None
            assert kind is not None
            reading = Reading(use.node, kind, use.dtype)
            readers.readings.setdefault(_stored_transposed(use, kind), []).append(reading)
    return readers


def matrix_kind(use: trace.Use) -> str | None:
    """What the reader does with the constant as a matrix; None when it does something else."""
    node = use.node
    if node is None:
        return None
    if node.domain == "":
        if node.op_type == "MatMul":
            return MATMUL
        if node.op_type == "Gemm" and use.index in (0, 1):
            return GEMM
        if node.op_type == "Gather" and use.index == 0:
            return GATHER
    return node.op_type if node.op_type in _OTHER_MATRIX_OPS else None


def _is_matrix(tensor: ir.TensorProtocol, kind: str) -> bool:
    shape = tensor.shape.numpy()
    return len(shape) == 2 or (kind == MATMUL and min(shape[-2:]) >= _MIN_BATCHED)


def _stored_transposed(use: trace.Use, kind: str) -> bool:
    """Whether the stored tensor is ``[K, N]``: a Gather and a Gemm with transB read ``[N, K]``."""
    assert use.node is not None
    reads_kn = kind == MATMUL or (kind == GEMM and not use.node.attributes.get_int("transB", 0))
    return reads_kn != use.flipped


def _reason_against(
    use: trace.Use, kind: str | None, value: ir.Value, tensor: ir.TensorProtocol, model: ir.Model
) -> str:
    """Why the reader needs the dense matrix; empty when it can read the packed one."""
    node = use.node
    if node is None:
        return "it is an output of the graph"
    who = f"{node.op_type} '{node.name or node.outputs[0].name}'"
    if kind not in (MATMUL, GEMM, GATHER):
        return f"{who} reads it; MatMul, Gemm and Gather are handled"
    if value.is_graph_input():
        return "it is an input of the graph with a default value, so it may change at run time"
    if node.graph is not model.graph or value.graph is not model.graph:
        return f"{who} or the matrix lies in a subgraph (a branch or loop body)"
    if len(tensor.shape) != 2:
        return f"{who} reads a batch of matrices: shape {list(tensor.shape.numpy())}, expected two dimensions"
    if kind != GATHER and use.index != 1:
        return f"it is the left operand of {who}; the operator multiplies from the right"
    if kind == GATHER and node.attributes.get_int("axis", 0) not in (0, -2):
        return f"{who} looks up along axis {node.attributes.get_int('axis', 0)}, expected 0"
    if kind == GEMM and use.dtype == ir.DataType.FLOAT16 and node.attributes.get_float("alpha", 1.0) != 1.0:
        return f"{who} scales in float16, where a product that is scaled afterwards may overflow"
    taken = contract.MATMUL.inputs[0].types
    if _SPELLING.get(use.dtype, use.dtype.name.lower()) not in taken:
        return f"{who} computes in {use.dtype.name.lower()}; the operators take {', '.join(taken)}"
    return ""


def _matrices(value: ir.Value, tensor: ir.TensorProtocol, readers: _Readers) -> list[Matrix]:
    """One matrix an orientation; a constant without a handled reader gives one matrix that stays dense."""
    shape = tensor.shape.numpy()
    result = []
    for transposed, readings in (readers.readings or {False: []}).items():
        rows, inputs = (shape[-1], shape[-2]) if transposed else (shape[-2], shape[-1])
        kinds = tuple(dict.fromkeys(reading.kind for reading in readings)) or tuple(readers.kinds)
        assert readers.first is not None
        name = naming.name_after(readers.first) if naming.is_nameless(value.name) else str(value.name)
        ref = MatrixRef(name, rows, inputs, transposed, tensor, kinds)
        result.append(Matrix(ref, readings, list(dict.fromkeys(readers.dense)), tensor.size * 4, [tensor]))
    return result
