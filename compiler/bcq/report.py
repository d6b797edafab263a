# SPDX-License-Identifier: Apache-2.0
"""What a run did to each matrix and to the whole: ``bcq_report.json`` and the lines at the end of a run."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

REPORT_FILE = "bcq_report.json"
MEGA = 1e6
LISTED = 8  # dense matrices that the end of a run names; the report file has them all


class Matrix(Protocol):
    """One distinct matrix as a report sees it; ``bcq.passes.weights.MatrixRecord`` is one."""

    @property
    def name(self) -> str:
        """Parameter or initializer name."""

    @property
    def kinds(self) -> Sequence[str]:
        """Operators that read it: ``matmul``, ``gemm``, ``gather``."""

    @property
    def rows(self) -> int:
        """N, output features."""

    @property
    def inputs(self) -> int:
        """K, input features."""

    @property
    def bits(self) -> int | None:
        """Planes, or None where it stays dense."""

    @property
    def group_size(self) -> int:
        """Inputs that share an alpha."""

    @property
    def dense_bytes(self) -> int:
        """Bytes as float32."""

    @property
    def packed_bytes(self) -> int:
        """Bytes of codes, alphas and offset; 0 where it stays dense."""

    @property
    def reason(self) -> str:
        """Why it stays dense; empty where it is packed."""

    @property
    def requested(self) -> bool:
        """Whether the user asked for exactly this."""


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


def summarize(matrices: Sequence[Matrix], bytes_after: int, seconds: float) -> Summary:
    """Adds up a run.

    Args:
        matrices: every distinct matrix, packed or not.
        bytes_after: bytes of the written model, dense tensors included.
        seconds: wall time.
    """
    packed = [matrix for matrix in matrices if matrix.bits is not None]
    counted = [matrix for matrix in matrices if matrix.bits is not None or not matrix.requested]
    saved = sum(matrix.dense_bytes - matrix.packed_bytes for matrix in packed)
    weights = sum(matrix.rows * matrix.inputs for matrix in packed)
    return Summary(
        packed=len(packed),
        total=len(matrices),
        share=_ratio(sum(m.dense_bytes for m in packed), sum(m.dense_bytes for m in counted)),
        bits_per_weight=_ratio(8 * sum(matrix.packed_bytes for matrix in packed), weights),
        bytes_fp32=bytes_after + saved,
        bytes_fp16=(bytes_after + saved) // 2,
        bytes_after=bytes_after,
        peak_ram=peak_ram(),
        seconds=seconds,
    )


def matrix_rows(matrices: Sequence[Matrix]) -> list[dict[str, Any]]:
    """Plain values of every matrix, in order, for JSON."""
    return [
        {
            "name": matrix.name,
            "kinds": list(matrix.kinds),
            "rows": matrix.rows,
            "inputs": matrix.inputs,
            "bits": matrix.bits,
            "group_size": matrix.group_size,
            "dense_bytes": matrix.dense_bytes,
            "packed_bytes": matrix.packed_bytes,
            "reason": matrix.reason,
            "requested": matrix.requested,
        }
        for matrix in matrices
    ]


def report_json(matrices: Sequence[Matrix], options: dict[str, Any] | None = None) -> str:
    """Text of ``bcq_report.json``: the same for the same input, so without time and memory."""
    document = {"report_version": 1, "options": options or {}, "matrices": matrix_rows(matrices)}
    return json.dumps(document, indent=2) + "\n"


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report in a folder, or None where there is none that can be read."""
    try:
        document = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def summary_text(summary: Summary, matrices: Sequence[Matrix] = ()) -> str:
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
    dense = [matrix for matrix in matrices if matrix.bits is None]
    lines += [f"dense       {m.name} [{m.rows} x {m.inputs}]: {m.reason}" for m in dense[:LISTED]]
    if len(dense) > LISTED:
        lines.append(f"dense       ... and {len(dense) - LISTED} more, see {REPORT_FILE}")
    return "\n".join(lines)


def megabytes(count: int) -> str:
    """Bytes as decimal megabytes, with three digits that matter."""
    value = count / MEGA
    return f"{value:.2f} MB" if value < 10 else f"{value:.1f} MB" if value < 100 else f"{value:,.0f} MB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned: the first to the left, the others to the right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    rule = ["-" * widths[0], *["-" * (width - 1) + ":" for width in widths[1:]]]
    return "\n".join(_line(row, widths) for row in [cells[0], rule, *cells[1:]])


def peak_ram() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        row[0].ljust(widths[0]),
        *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)],
    ]
    return "| " + " | ".join(cells) + " |"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
