# SPDX-License-Identifier: Apache-2.0
"""What would become of every matrix of a model: the list behind ``bcq inspect`` and ``--dry-run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq import contract
from bcq.errors import InputError
from bcq.matrices import plan
from bcq.matrices.plan import Choice, QuantizeOptions
from bcq.report import Row, read_report, rows_of

if TYPE_CHECKING:
    from bcq.passes import Left, MatrixRecord, MatrixRef

EXPORTED = "model.onnx"


def planned_matrices(model: Path, options: QuantizeOptions) -> list[Row]:
    """Lists the matrices of a model without quantizing one.

    Args:
        model: model folder, quantized base, exported folder or ``.onnx`` file.
        options: what `quantize` or `export` would get; a base or an export tells what it already is.

    Raises:
        InputError: E101 when nothing is there, and what reading a model raises.
        UsageError: E201 when a ``--set`` pattern fits no matrix.
    """
    if not model.exists():
        raise InputError("E101", f"'{model}' does not exist.", "Give a model folder or an .onnx file.")
    if model.is_file():
        return _of_graph(model, options)
    done = read_report(model)
    if done is not None:
        return done
    if (model / EXPORTED).is_file() and not (model / "config.json").is_file():
        return _of_graph(model / EXPORTED, options)
    from bcq.quantize import plan as plan_folder

    return rows_of(plan_folder(model, options))


def planned_export(source: Path, output: Path, options: QuantizeOptions | None, **choices: Any) -> list[Row]:
    """What `bcq.export` would make of every matrix; no weight is read, nothing is written.

    Args:
        source: model folder, base or ``.onnx`` file.
        output: the folder that would be made.
        options: how to quantize; None for the defaults, and for a base.
        choices: further arguments of `bcq.export` that decide what is made.

    Raises:
        BcqError: what an export raises before it begins to work.
    """
    from bcq.export import check_export

    check_export(source, output, options, **choices)
    return planned_matrices(source, options or QuantizeOptions())


def tile16_bytes(rows: int, inputs: int, bits: int, group_size: int, offset: bool) -> int:
    """Bytes of a packed matrix with its padding; group size 0 is row-wise."""
    tiles = -(-rows // contract.TILE_ROWS)
    chunks = -(-inputs // contract.WORD_BITS)
    groups = -(-inputs // (group_size or inputs))
    scales = bits + (1 if offset else 0)
    return tiles * contract.TILE_ROWS * (chunks * bits * 4 + groups * scales * 2)


class _DryRun:
    """A weight source that packs nothing and remembers what it would have done."""

    def __init__(self, options: QuantizeOptions) -> None:
        self.options = options
        self.choices: dict[str, Choice] = {}

    def identity(self, matrix: MatrixRef) -> str:
        """The name: values are not read."""
        return matrix.name

    def pack(self, matrix: MatrixRef) -> Left:
        """Leaves the matrix dense."""
        from bcq.passes import Left

        self.choices[matrix.name] = plan.choice_for(matrix.name, self.options, "gather" in matrix.kinds)
        return Left("dry run")


def _of_graph(path: Path, options: QuantizeOptions) -> list[Row]:
    from bcq import passes
    from bcq.frontends import onnx_file

    source = _DryRun(options)
    records = passes.run(onnx_file.load(path), source).matrices
    plan.check_overrides(options, [record.name for record in records])
    return [_row(record, source.choices.get(record.name, Choice(None, record.reason))) for record in records]


def _row(record: MatrixRecord, choice: Choice) -> Row:
    rows, inputs, bits = record.rows, record.inputs, choice.bits
    return Row(
        name=record.name,
        kind="+".join(record.kinds),
        rows=rows,
        inputs=inputs,
        bits=bits,
        group_size=0 if bits is None else plan.group_size_for(choice, inputs),
        dense_bytes=record.dense_bytes,
        packed_bytes=0
        if bits is None
        else tile16_bytes(rows, inputs, bits, choice.group_size, choice.offset),
        reason=choice.reason,
        requested=choice.requested,
        offset=choice.offset,
    )
