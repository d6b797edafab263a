# SPDX-License-Identifier: Apache-2.0
"""Asks the source for the packed form of each distinct matrix and puts it into the graph as initializers."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from bcq import contract
from bcq.packing import PackedWeight
from bcq.passes import naming
from bcq.passes.report import MatrixRecord
from bcq.passes.weights import Left
from bcq.passes.work import Matrix, PackedValues, Work


def pack_matrices(model: ir.Model, work: Work) -> None:
    """Packs what has a reader for it; records what became of every matrix."""
    work.matrices = _with_own_names(_merged(work))
    taken = naming.value_names(model)
    work.progress.start("pack", len(work.matrices))
    for matrix in work.matrices:
        record = _pack(model, work, matrix, taken)
        work.report.matrices.append(record)
        work.progress.step(record.name, f"{record.bits} bits" if record.bits else record.reason)
    work.progress.done()


def _merged(work: Work) -> list[Matrix]:
    """Matrices with equal values become one, read by all their nodes; the name of the first one stays."""
    distinct: dict[str, Matrix] = {}
    result = []
    for matrix in work.matrices:
        first = distinct.setdefault(work.source.identity(matrix.ref), matrix) if matrix.readings else matrix
        if first is matrix:
            result.append(matrix)
            continue
        first.ref = replace(first.ref, kinds=tuple(dict.fromkeys(first.ref.kinds + matrix.ref.kinds)))
        first.readings += matrix.readings
        first.copies += matrix.copies
        first.dense_readers += [
            reason for reason in matrix.dense_readers if reason not in first.dense_readers
        ]
    return result


def _with_own_names(matrices: list[Matrix]) -> list[Matrix]:
    taken: set[str] = set()
    for matrix in matrices:
        matrix.ref = replace(matrix.ref, name=naming.fresh(matrix.ref.name, taken))
    return matrices


def _pack(model: ir.Model, work: Work, matrix: Matrix, taken: set[str]) -> MatrixRecord:
    dense = "; ".join(matrix.dense_readers)
    if not matrix.readings:
        return _record(matrix, None, dense, False)
    packed = work.source.pack(matrix.ref)
    if isinstance(packed, Left):
        return _record(matrix, None, packed.reason, packed.requested)
    matrix.packed = PackedValues(
        _initializers(model.graph, matrix.ref.name, packed, taken), _attributes(packed, work.accuracy_level)
    )
    record = _record(matrix, packed, f"packed, but a dense copy stays: {dense}" if dense else "", False)
    errors = getattr(work.source, "errors", {})  # a source that only copies planes need not know them
    return replace(record, relative_error=errors.get(matrix.ref.name)) if record.packed else record


def _initializers(graph: ir.Graph, name: str, packed: PackedWeight, taken: set[str]) -> tuple[ir.Value, ...]:
    values = []
    for part, array in packed.tensors().items():
        tensor = ir.Tensor(array, name=naming.fresh(f"{name}.{part}", taken))
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        graph.register_initializer(value)
        values.append(value)
    return tuple(values)


def _attributes(packed: PackedWeight, accuracy_level: int) -> dict[str, int | str]:
    return {
        "format_version": packed.format_version,
        "layout": contract.LAYOUT,
        "bits": packed.bits,
        "K": packed.inputs,
        "N": packed.rows,
        "group_size": packed.group_size,
        "code_hash": packed.code_hash(),
        "accuracy_level": accuracy_level,
    }


def _record(matrix: Matrix, packed: PackedWeight | None, reason: str, requested: bool) -> MatrixRecord:
    """A matrix of which a dense copy stays counts as dense, whatever its other readers read."""
    ref = matrix.ref
    counted = packed if not reason else None
    return MatrixRecord(
        name=ref.name,
        kinds=ref.kinds,
        rows=ref.rows,
        inputs=ref.inputs,
        bits=counted.bits if counted else None,
        group_size=counted.group_size if counted else 0,
        dense_bytes=matrix.dense_bytes,
        packed_bytes=packed.nbytes if packed else 0,
        reason=reason,
        requested=requested,
        offset=bool(counted and counted.offset.size),
    )
