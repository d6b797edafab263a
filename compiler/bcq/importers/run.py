# SPDX-License-Identifier: Apache-2.0
"""The story of an import: a folder becomes a quantized base, an ``.onnx`` file a packed one, or back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bcq import report
from bcq.errors import InputError, UsageError
from bcq.importers.factors import REFUSE, ROUND
from bcq.importers.folder import AUTO, FORMATS
from bcq.importers.result import ImportedMatrix
from bcq.progress import SILENT, Progress

NBITS = "matmulnbits"
SOURCES = (AUTO, *FORMATS, NBITS)
BCQ = "bcq"
TARGETS = (BCQ, NBITS)
MODEL_FILE = "model.onnx"


@dataclass(frozen=True)
class ImportResult:
    """What an import made.

    Attributes:
        folder: the output folder: a quantized base, or a model in ``model.onnx``.
        kind: the format of the source.
        matrices: how well each matrix was taken over.
        rows: every matrix, as reports show it.
        model_bytes: bytes of the weights as written, for graphs with the graph.
        seconds: wall time.
    """

    folder: Path
    kind: str
    matrices: tuple[ImportedMatrix, ...]
    rows: tuple[report.Row, ...]
    model_bytes: int
    seconds: float

    @property
    def exact(self) -> bool:
        """Whether every weight equals what the source means."""
        return all(matrix.exact for matrix in self.matrices)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "output": str(self.folder),
            "format": self.kind,
            "exact": self.exact,
            **report.summarize(self.rows, self.model_bytes, self.seconds).to_dict(),
            "imported": [asdict(matrix) for matrix in self.matrices],
            "matrices": report.matrix_rows(self.rows),
        }


def import_model(
    source: str | Path,
    output: str | Path,
    kind: str = AUTO,
    bits: int | None = None,
    inexact: str = REFUSE,
    target: str = BCQ,
    progress: Progress = SILENT,
    command: Sequence[str] = ("bcq", "import"),
) -> ImportResult:
    """Takes over weights that another program quantized.

    Args:
        source: a folder with a GPTQ, AWQ, LUT-GEMM or AnyBCQ checkpoint, which becomes a quantized base; or
            an ``.onnx`` file whose MatMulNBits nodes become BcqMatMul.
        output: folder to make; one that this program wrote before is replaced at the very end.
        kind: one of `SOURCES`.
        bits: the precision, for AnyBCQ; the highest one when None. For `target` ``"matmulnbits"``: 4 or 8,
            of the nearest grid, 4 when None.
        inexact: what to do where float16 factors cannot hold the values, or MatMulNBits the factors:
            ``"refuse"``, ``"plane"`` (one plane more) or ``"round"``.
        target: ``"matmulnbits"`` to turn the BcqMatMul nodes of an export into MatMulNBits instead.
        progress: told once a matrix.
        command: what to record in the manifest.

    Raises:
        InputError: E101 to E109 for a source that is missing, damaged or unsafe.
        UsageError: E202 for an option out of range, E203 for an output that holds something else.
        UnsupportedError: E401 for a variant that is not handled, E403 for weights that do not fit exactly.
        ResourceError: E601 when the disk is full, E603 when a package is missing.
    """
    began = time.monotonic()
    if kind not in SOURCES:
        raise UsageError("E202", f"--format: got {kind!r}, expected one of {', '.join(SOURCES)}.")
    if target not in TARGETS:
        raise UsageError("E202", f"--to: got {target!r}, expected one of {', '.join(TARGETS)}.")
    order = _Order(Path(source), Path(output), kind, bits, inexact, progress, command)
    if target == NBITS:
        found, matrices = _to_nbits(order)
    elif order.source.suffix.lower() == ".onnx" and not order.source.is_dir():
        found, matrices = _from_graph(order)
    else:
        found, matrices = _from_folder(order)
    rows = tuple(report.read_report(order.output) or ())
    size = sum(path.stat().st_size for path in order.output.glob("model.*") if path.suffix != ".json")
    return ImportResult(order.output, found, tuple(matrices), rows, size, time.monotonic() - began)


@dataclass(frozen=True)
class _Order:
    """The arguments of `import_model`."""

    source: Path
    output: Path
    kind: str
    bits: int | None
    inexact: str
    progress: Progress
    command: Sequence[str]


def _from_folder(order: _Order) -> tuple[str, list[ImportedMatrix]]:
    from bcq.importers.base_folder import write_base
    from bcq.importers.folder import read_folder

    if order.kind == NBITS:
        raise UsageError(
            "E202", f"--format {NBITS}: {order.source} is no .onnx file.", "Give the file in it."
        )
    checkpoint, found, matrices = read_folder(order.source, order.kind, order.bits)
    imported = write_base(
        checkpoint, matrices, found, order.output, order.inexact, order.progress, order.command
    )[1]
    return found, imported


def _from_graph(order: _Order) -> tuple[str, list[ImportedMatrix]]:
    from bcq.importers.graph import pack_graph

    _check_graph(order)
    if order.kind not in (AUTO, NBITS):
        raise UsageError(
            "E202", f"--format {order.kind}: {order.source} is an .onnx file, expected a folder."
        )
    return NBITS, pack_graph(order.source, order.output, order.inexact, order.progress, order.command)


def _to_nbits(order: _Order) -> tuple[str, list[ImportedMatrix]]:
    from bcq.importers import nearest
    from bcq.importers.graph import unpack_graph

    if order.source.is_dir():
        order = replace(order, source=order.source / MODEL_FILE)
    bits = 4 if order.bits is None else order.bits
    if bits not in nearest.BITS or (order.bits is not None and order.inexact != ROUND):
        raise UsageError("E202", f"--bits {bits}: expected 4 or 8, with --inexact round.")
    _check_graph(replace(order, bits=None))
    rounded = bits if order.inexact == ROUND else None
    return BCQ, unpack_graph(order.source, order.output, order.progress, order.command, rounded)


def _check_graph(order: _Order) -> None:
    if order.bits is not None:
        raise UsageError("E202", "--bits: only a checkpoint of several precisions has a choice.")
    if not order.source.is_file():
        raise InputError("E101", f"the file {order.source} does not exist.", "Give the path of an ONNX file.")
