# SPDX-License-Identifier: Apache-2.0
"""Where packed weights come from: solved from the graph's own tensors, or taken from a quantized base."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir

from bcq import contract, packing, report
from bcq.bcq import Float32, ceil_div
from bcq.errors import InputError
from bcq.matrices import plan
from bcq.matrices.resume import key_of
from bcq.packing import PackedWeight

if TYPE_CHECKING:
    from bcq.files.base import QuantizedBase
    from bcq.matrices.resume import Finished

GATHER_KIND = "gather"


@dataclass(frozen=True)
class MatrixRef:
    """One constant matrix of a graph, as its readers need it.

    Attributes:
        name: parameter or initializer name.
        rows: N.
        inputs: K.
        transposed: the tensor is stored ``[K, N]`` instead of ``[N, K]``.
        tensor: the stored tensor; reading it may touch the disk.
        kinds: ``matmul``, ``gemm``, ``gather``: how nodes read it.
    """

    name: str
    rows: int
    inputs: int
    transposed: bool
    tensor: ir.TensorProtocol
    kinds: tuple[str, ...]

    def read(self) -> Float32:
        """The matrix as float32 ``[N, K]``, contiguous.

        Raises:
            InputError: E106 when a value is NaN or infinite.
        """
        stored = self.tensor.numpy()
        matrix = np.array(stored.T if self.transposed else stored, dtype=np.float32, order="C")
        del stored  # no view is left, so the file can be unmapped: its pages would count as ours
        if isinstance(self.tensor, ir.ExternalTensor):
            self.tensor.release()
        if not np.isfinite(matrix).all():
            row, column = (int(index) for index in np.argwhere(~np.isfinite(matrix))[0])
            raise InputError(
                "E106",
                f"matrix '{self.name}' holds {matrix[row, column]} at output {row}, input {column}.",
                "A model with such a weight cannot be quantized; repair or retrain it.",
            )
        return matrix


@dataclass(frozen=True)
class Left:
    """A matrix that stays dense, with the reason; ``requested``: the user asked for it."""

    reason: str
    requested: bool = False


class WeightSource(Protocol):
    """Gives the packed form of a matrix.

    One that knows how far the packed values are from the original ones says so in a dictionary ``errors``:
    the relative error by the name under which :meth:`pack` was asked.
    """

    def identity(self, matrix: MatrixRef) -> str:
        """A key that is equal for matrices that hold the same values: those are packed once."""

    def pack(self, matrix: MatrixRef) -> PackedWeight | Left:
        """The packed matrix, or the reason for leaving it dense."""


class SolveOnTheFly:
    """Quantizes the tensors that the graph itself carries.

    Args:
        options: bits, group size and offset, with ``--set`` exceptions by name.
        finished: where packed tensors wait until they are written; None keeps them in memory.
    """

    def __init__(self, options: plan.QuantizeOptions, finished: Finished | None = None) -> None:
        self.options = options
        self.finished = finished
        self.errors: dict[str, float] = {}

    def identity(self, matrix: MatrixRef) -> str:
        """Hash of the float32 ``[N, K]`` values, so an initializer and its transposed copy are one matrix."""
        digest = hashlib.sha256(f"{matrix.rows}x{matrix.inputs}".encode())
        digest.update(matrix.read().data)
        return digest.hexdigest()

    def pack(self, matrix: MatrixRef) -> PackedWeight | Left:
        """Solves the matrix with the bits, group size and offset that the options give to its name."""
        from bcq.solver import relative_error, solve  # late: a base needs no solver

        options = self.options
        choice = plan.choice_for(matrix.name, options, embedding=GATHER_KIND in matrix.kinds)
        if choice.bits is None:
            return Left(choice.reason, choice.requested)
        group_size = plan.group_size_for(choice, matrix.inputs)
        packed_bytes = _packed_bytes(matrix, choice.bits, group_size, choice.offset)
        if packed_bytes >= matrix.tensor.nbytes:
            return Left(f"packed it would take {packed_bytes:,} bytes, dense {matrix.tensor.nbytes:,}")
        reason = why_never_packed(matrix)
        if reason:
            return Left(reason)
        dense = matrix.read()
        how = (choice.bits, group_size, options.method, choice.offset, options.seed)
        key = key_of(dense, *how) if self.finished else ""
        found = self.finished.find(key) if self.finished else None
        if found is not None:
            packed, self.errors[matrix.name] = found
            return packed
        weight = solve(dense, *how, name=matrix.name)
        self.errors[matrix.name] = relative_error(dense, weight)
        packed = packing.pack(weight)
        return self.finished.keep(key, packed, self.errors[matrix.name]) if self.finished else packed


class FromBase:
    """Takes packed matrices from a quantized base by name.

    Args:
        base: an opened base; its matrices stay mapped from their file.
        bits: a further precision of the base; None for the one that its matrices have.
    """

    def __init__(self, base: QuantizedBase, bits: int | None = None) -> None:
        self.base = base
        self.bits = bits
        self.errors: dict[str, float] = {}
        rows = report.read_report(base.folder) or []
        self._known = {row.name: row.relative_error for row in rows if row.relative_error is not None}

    def identity(self, matrix: MatrixRef) -> str:
        """The name under which the base stores it, shared by tied parameters, and the orientation."""
        known = self.base.find(matrix.name)
        name = known.stored if known else f"{matrix.name} {id(matrix.tensor)}"
        return f"{name} {matrix.rows}x{matrix.inputs}"

    def pack(self, matrix: MatrixRef) -> PackedWeight | Left:
        """The base's matrix of the same name.

        Raises:
            InputError: E109 when its N or K differ from the graph's.
        """
        known = self.base.find(matrix.name)
        if known is None:
            return self._left(matrix)
        if known.name in self._known and self.bits is None:
            self.errors[matrix.name] = self._known[known.name]
        packed = self.base.packed(matrix.name, self.bits)
        got, expected = (packed.rows, packed.inputs), (matrix.rows, matrix.inputs)
        if got != expected:
            raise InputError(
                "E109",
                f"matrix '{matrix.name}' of the base has N, K = {got}, the graph expects {expected}.",
                "Quantize the model again.",
            )
        return packed

    def _left(self, matrix: MatrixRef) -> Left:
        """Whether the options that the base was made with asked for a dense matrix."""
        section = self.base.config.get("quantization_config", {})
        names = (entry.name for entry in fields(plan.QuantizeOptions))
        options = plan.QuantizeOptions(**{name: section[name] for name in names if name in section})
        choice = plan.choice_for(matrix.name, options, embedding=GATHER_KIND in matrix.kinds)
        if choice.bits is None:
            return Left(choice.reason, choice.requested)
        return Left("the quantized base holds it dense")


def _packed_bytes(matrix: MatrixRef, bits: int, group_size: int, offset: bool) -> int:
    """Bytes of the packed tensors, padding included."""
    rows = ceil_div(matrix.rows, contract.TILE_ROWS) * contract.TILE_ROWS
    words = ceil_div(matrix.inputs, contract.WORD_BITS) * bits
    halves = ceil_div(matrix.inputs, group_size) * (bits + offset)
    return rows * (4 * words + 2 * halves)


def why_never_packed(matrix: MatrixRef) -> str:
    """Why a matrix stays dense whatever the options say; empty when it can be packed."""
    if matrix.kinds == (GATHER_KIND,) and _is_rotary_table(matrix.read()):
        return "it is a table of rotary positions: both halves of each row are equal"
    return ""


def _is_rotary_table(dense: Float32) -> bool:
    """Cosines or sines of rotary positions, repeated for both halves of a head as no trained table is."""
    half = dense.shape[1] // 2
    return bool(dense.any()) and np.array_equal(dense[:, :half], dense[:, half:])
