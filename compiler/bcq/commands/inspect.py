# SPDX-License-Identifier: Apache-2.0
"""``bcq inspect``: every matrix of a model, whether it would be packed, and if not why."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.commands.options import add_quantize_options, add_verb, emit, quantize_options

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers
    from bcq.plan import QuantizeOptions
    from bcq.report import Row

EXAMPLES = """\
  bcq inspect models/gpt2
  bcq inspect model.onnx --bits 4 --set 'lm_head*=keep'"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "inspect", "list every matrix, and what would become of it", EXAMPLES)
    verb.add_argument("model", type=Path, metavar="MODEL", help="model folder, base, export or .onnx file")
    add_quantize_options(verb)
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the list."""
    return show_plan(arguments, arguments.model, quantize_options(arguments))


def show_plan(arguments: argparse.Namespace, model: Path, options: QuantizeOptions) -> int:
    """Prints what `options` would do to `model`; nothing is written."""
    from bcq.listing import planned_matrices

    rows = planned_matrices(model, options)
    data = {"model": str(model), "matrices": [asdict(row) for row in rows], **totals(rows)}
    emit(arguments, data, text(rows))
    return 0


def totals(rows: list[Row]) -> dict[str, float]:
    """Counts and bytes over all matrices, with the share that would be packed."""
    distinct = [row for row in rows if not row.tied]
    dense = sum(row.dense_bytes for row in distinct)
    packed = sum(row.dense_bytes for row in distinct if row.packed)
    return {
        "packed_count": sum(row.packed for row in distinct),
        "total_count": len(distinct),
        "packed_share": packed / dense if dense else 0.0,
        "dense_bytes": dense,
        "packed_bytes": sum(row.packed_bytes if row.packed else row.dense_bytes for row in distinct),
    }


def text(rows: list[Row]) -> str:
    """A table for people and one line with the totals."""
    from bcq.report import megabytes, table

    body = [
        [
            row.name,
            f"{row.rows} x {row.inputs}",
            row.kind,
            "-" if row.bits is None else str(row.bits),
            row.reason or "packed",
        ]
        for row in rows
    ]
    sums = totals(rows)
    return "\n".join(
        [
            table(["matrix", "N x K", "kind", "bits", "outcome"], body, "lrlrl"),
            f"{sums['packed_count']} of {sums['total_count']} matrices packed"
            f" ({sums['packed_share']:.1%} of matrix bytes):"
            f" {megabytes(int(sums['dense_bytes']))} fp32 -> {megabytes(int(sums['packed_bytes']))}",
        ]
    )
