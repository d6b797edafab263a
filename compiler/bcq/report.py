# SPDX-License-Identifier: Apache-2.0
"""What a run did to each matrix and to the whole: ``bcq_report.json`` and the lines at the end of a run."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPORT_FILE = "bcq_report.json"
MEGA = 1e6
LISTED = 8  # dense matrices that the end of a run names; the report file has them all


@dataclass(frozen=True)
class Row:
    """One matrix as reports show it.

    Attributes:
        name: parameter or initializer name.
        kind: what it is (``linear``, ``conv1d``, ``embedding``, ``tied``) or which operators read it.
        rows: N, output features.
        inputs: K, input features.
        bits: planes, or None where it stays dense.
        group_size: inputs that share an alpha, 0 where it stays dense.
        dense_bytes: bytes as float32.
        packed_bytes: bytes of codes, alphas and offset, 0 where it stays dense.
        reason: why it stays dense, or with which matrix a tied one is shared.
        requested: whether the user asked for it.
        relative_error: sum of squared errors over the sum of squared weights, None where it stays dense or
            is not known.
        offset: whether its groups have offsets; False where it stays dense or an old report does not say.
    """

    name: str
    kind: str
    rows: int
    inputs: int
    bits: int | None
    group_size: int
    dense_bytes: int
    packed_bytes: int
    reason: str
    requested: bool
    relative_error: float | None = None
    offset: bool = False

    @classmethod
    def of(cls, matrix: Mapping[str, Any]) -> Row:
        """A row of a report file or the fields of a record; both spellings of the kind are known."""
        kinds, error = matrix.get("kinds"), matrix.get("relative_error")
        bits = matrix["bits"]
        return cls(
            name=str(matrix["name"]),
            kind="+".join(kinds) if kinds else str(matrix.get("kind", "")),
            rows=int(matrix["rows"]),
            inputs=int(matrix["inputs"]),
            bits=bits,
            group_size=int(matrix["group_size"]),
            dense_bytes=int(matrix["dense_bytes"]),
            packed_bytes=0 if bits is None else int(matrix["packed_bytes"]),
            reason=str(matrix.get("reason", "")),
            requested=bool(matrix.get("requested", False)),
            relative_error=None if error is None else float(error),
            offset=bool(matrix.get("offset", False)),
        )

    @property
    def tied(self) -> bool:
        """Whether it only shares another row's matrix, so that it does not count."""
        return self.kind == "tied"

    @property
    def packed(self) -> bool:
        """Whether no dense copy is left."""
        return self.bits is not None and not self.reason


def rows_of(records: Iterable[Any]) -> list[Row]:
    """Rows of what other modules record: dataclasses with the fields of a row, or rows themselves."""
    return [record if isinstance(record, Row) else Row.of(asdict(record)) for record in records]


def matrix_rows(records: Iterable[Any]) -> list[dict[str, Any]]:
    """Plain values of every matrix, in order, for JSON."""
    return [asdict(row) for row in rows_of(records)]


def report_json(records: Iterable[Any], options: dict[str, Any], fusions: Iterable[Any] = ()) -> str:
    """Text of ``bcq_report.json``: the same for the same input, so without time and memory.

    Args:
        records: every matrix, as `rows_of` takes them.
        options: how it was quantized.
        fusions: which matrices one operator multiplies with, as :class:`bcq.passes.report.Fusion`.
    """
    document = {
        "options": options,
        "matrices": matrix_rows(records),
        "fused": [asdict(fusion) for fusion in fusions],
    }
    return json.dumps(document, indent=2) + "\n"


@dataclass(frozen=True)
class Summary:
    """The figures of one run; bytes count the whole model, not only its matrices.

    Attributes:
        packed: matrices that are packed.
        total: matrices in the model.
        share: packed part of the matrix bytes (as float32), without those that the user keeps dense.
        bits_per_weight: bits that a packed weight takes, alphas and offsets included.
        bytes_fp32: the model with every matrix dense in float32.
        bytes_fp16: half of it.
        bytes_after: the model as written.
        peak_ram: largest resident size of this process so far, in bytes.
        seconds: wall time.
    """

    packed: int
    total: int
    share: float
    bits_per_weight: float
    bytes_fp32: int
    bytes_fp16: int
    bytes_after: int
    peak_ram: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def summarize(records: Iterable[Any], bytes_after: int, seconds: float) -> Summary:
    """Adds up a run.

    Args:
        records: every matrix, packed or not, as `rows_of` takes them; tied ones do not count.
        bytes_after: bytes of the written model, dense tensors included.
        seconds: wall time.
    """
    distinct = [row for row in rows_of(records) if not row.tied]
    packed = [row for row in distinct if row.packed]
    counted = [row for row in distinct if row.packed or not row.requested]
    saved = sum(row.dense_bytes for row in packed) - sum(row.packed_bytes for row in distinct)
    return Summary(
        packed=len(packed),
        total=len(distinct),
        share=_ratio(sum(row.dense_bytes for row in packed), sum(row.dense_bytes for row in counted)),
        bits_per_weight=_ratio(
            8 * sum(row.packed_bytes for row in packed), sum(row.rows * row.inputs for row in packed)
        ),
        bytes_fp32=bytes_after + saved,
        bytes_fp16=(bytes_after + saved) // 2,
        bytes_after=bytes_after,
        peak_ram=peak_ram(),
        seconds=seconds,
    )


def read_report(folder: Path) -> list[Row] | None:
    """The matrices in a folder's report; None where there is no report that can be read."""
    try:
        document = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        return [Row.of(matrix) for matrix in document["matrices"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever a foreign file holds
        return None


def summary_text(summary: Summary, matrices: Sequence[Row] = ()) -> str:
    """The lines at the end of a run."""
    after = summary.bytes_after
    lines = [
        f"packed      {summary.packed} of {summary.total} matrices, {summary.share:.1%} of matrix bytes",
        f"weights     {summary.bits_per_weight:.2f} bits each, alphas included",
        f"size        {megabytes(summary.bytes_fp32)} (fp32), {megabytes(summary.bytes_fp16)} (fp16)"
        f" -> {megabytes(after)}: {_ratio(summary.bytes_fp32, after):.1f}x and"
        f" {_ratio(summary.bytes_fp16, after):.1f}x smaller",
        f"peak memory {megabytes(summary.peak_ram)}",
        f"time        {summary.seconds:.1f} s",
    ]
    lines += _worst(matrices)
    dense = [row for row in matrices if not row.packed and not row.tied]
    lines += [f"dense       {m.name} [{m.rows} x {m.inputs}]: {m.reason}" for m in dense[:LISTED]]
    if len(dense) > LISTED:
        lines.append(f"dense       ... and {len(dense) - LISTED} more, see {REPORT_FILE}")
    return "\n".join(lines)


def _worst(matrices: Sequence[Row]) -> list[str]:
    """A line that names the packed matrix with the largest relative error, where errors are known."""
    errors = {row.name: row.relative_error for row in matrices if row.relative_error is not None}
    if not errors:
        return []
    name = max(errors, key=errors.__getitem__)
    return [f"worst       {name}: relative error {errors[name]:.4f} (squared)"]


def megabytes(count: int) -> str:
    """Bytes as decimal megabytes, with three digits that matter."""
    value = count / MEGA
    return f"{value:.2f} MB" if value < 10 else f"{value:.1f} MB" if value < 100 else f"{value:,.0f} MB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """A Markdown table with columns of equal width.

    Args:
        header: titles of the columns.
        rows: cells.
        align: one letter a column, ``l`` or ``r``; ``l`` and then all ``r`` if empty.
    """
    align = align or "l" + "r" * (len(header) - 1)
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    rule = [
        "-" * width if side == "l" else "-" * (width - 1) + ":"
        for width, side in zip(widths, align, strict=True)
    ]
    return "\n".join(_line(row, widths, align) for row in [cells[0], rule, *cells[1:]])


def peak_ram() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _line(row: Sequence[str], widths: Sequence[int], align: str) -> str:
    cells = [
        cell.ljust(width) if side == "l" else cell.rjust(width)
        for cell, width, side in zip(row, widths, align, strict=True)
    ]
    return "| " + " | ".join(cells) + " |"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
