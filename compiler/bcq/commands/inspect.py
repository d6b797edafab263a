# SPDX-License-Identifier: Apache-2.0
"""``bcq inspect``: every matrix of a model, whether it would be packed, and if not why."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands.options import add_quantize_options, add_verb, emit, quantize_options

if TYPE_CHECKING:
    from bcq.budget.choose import Budget
    from bcq.commands.options import Subparsers
    from bcq.matrices.plan import QuantizeOptions
    from bcq.report import Row

EXAMPLES = """\
  bcq inspect models/gpt2
  bcq inspect model.onnx --bits 4 --set 'lm_head*=keep'
  bcq inspect models/gpt2 --target-bpw 2.5 --sensitivity-text dev.txt    # what a budget would choose
  bcq inspect model.onnx --target-size 40MB"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "inspect", "list every matrix, and what would become of it", EXAMPLES)
    verb.add_argument("model", type=Path, metavar="MODEL", help="model, base, export, adapter or .onnx")
    add_quantize_options(verb)
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the list."""
    from bcq.adapters.folder import is_adapter

    if is_adapter(arguments.model):
        return show_adapter(arguments)
    return show_plan(arguments, arguments.model, quantize_options(arguments))


def show_adapter(arguments: argparse.Namespace) -> int:
    """Prints what an adapter holds, and of which base."""
    from bcq.adapters.adapter import Adapter

    adapter = Adapter.open(arguments.model)
    tensors = {name: list(array.shape) for name, array in adapter.tensors().items()}
    data = {
        "adapter": adapter.name,
        "base_hash": adapter.base_hash,
        "numbers": adapter.count,
        "bytes": adapter.nbytes,
        "metadata": dict(adapter.metadata),
        "tensors": tensors,
    }
    lines = [
        f"adapter   {adapter.name}, {adapter.count:,} numbers, {adapter.nbytes / 1000:,.1f} kB",
        f"base      {adapter.base_hash}",
        *[f"  {name} {shape}" for name, shape in tensors.items()],
    ]
    emit(arguments, data, "\n".join(lines))
    return 0


def show_plan(arguments: argparse.Namespace, model: Path, options: QuantizeOptions) -> int:
    """Prints what `options` would do to `model`; nothing is written."""
    from bcq.matrices.listing import planned_matrices

    show_rows(arguments, model, planned_matrices(model, options))
    return 0


def show_rows(arguments: argparse.Namespace, model: Path, rows: list[Row]) -> None:
    """Prints what would become of every matrix."""
    budget: Budget | None = getattr(arguments, "budget", None)
    matrices = [asdict(row) for row in rows]
    data: dict[str, Any] = {"model": str(model), "matrices": matrices, **totals(rows)}
    if budget is not None:
        shares = budget.shares()
        for matrix in matrices:
            matrix["error_share"] = shares.get(matrix["name"])
        data["budget"] = budget.to_dict()
    emit(arguments, data, text(rows, budget))


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


def text(rows: list[Row], budget: Budget | None = None) -> str:
    """A table for people and one line with the totals; a budget adds its shares of the error and a line."""
    from bcq.report import megabytes, table

    sums, shares = totals(rows), budget.shares() if budget else {}
    header = ["matrix", "N x K", "kind", "bits", "group", "offset", "bytes"]
    header += ["error share", "outcome"] if budget else ["outcome"]
    body = []
    for row in rows:
        share = [f"{shares[row.name]:.1%}" if row.name in shares else "-"] if budget else []
        sizes = [row.name, f"{row.rows} x {row.inputs}", row.kind]
        body.append([*sizes, *_how(row), *share, row.reason or "packed"])
    lines = [
        table(header, body, "lrlrrlr" + ("rl" if budget else "l")),
        f"{sums['packed_count']} of {sums['total_count']} matrices packed"
        f" ({sums['packed_share']:.1%} of matrix bytes):"
        f" {megabytes(int(sums['dense_bytes']))} fp32 -> {megabytes(int(sums['packed_bytes']))}",
    ]
    return "\n".join(lines + ([str(budget)] if budget else []))


def _how(row: Row) -> list[str]:
    """Bits, group size, offset and bytes."""
    if row.bits is None:
        return ["-", "-", "-", f"{row.dense_bytes:,}"]
    group = "row" if row.group_size in (0, row.inputs) else str(row.group_size)
    return [str(row.bits), group, "yes" if row.offset else "no", f"{row.packed_bytes:,}"]
