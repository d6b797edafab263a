# SPDX-License-Identifier: Apache-2.0
"""``bcq verify``: does the exported model compute what PyTorch computes?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.commands.options import add_verb, emit, progress
from bcq.errors import InputError, ParityFailure, UsageError

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers
    from bcq.parity import ParityResult

EXAMPLES = """\
  bcq verify out --against models/gpt2
  bcq verify out --against models/gpt2 --per-layer --json
  bcq verify out --bits 2           # of an export that serves several precisions
  bcq verify out --integrity        # only: is every byte as it was written? (exit code 3: no)"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "verify", "compare an export with PyTorch (exit code 5: differs)", EXAMPLES)
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="what `bcq export` wrote")
    verb.add_argument("--against", type=Path, metavar="MODEL", help="the model folder it was made from")
    verb.add_argument("--bits", type=int, metavar="Q", help="precision of an export that serves several")
    verb.add_argument("--prompt", metavar="TEXT", help="text to compare on (default: seeded tokens)")
    verb.add_argument("--steps", type=int, default=16, metavar="N", help="decode steps (default 16)")
    verb.add_argument("--per-layer", action="store_true", help="one line a layer")
    verb.add_argument(
        "--integrity",
        action="store_true",
        help="instead, compare each file of an output with its manifest (exit code 3: differs)",
    )
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compares; 0 when equal within tolerance, else 5. With --integrity, 0 when intact, else 3."""
    if arguments.integrity:
        return _integrity(arguments)
    from bcq.parity import verify

    result = verify(
        arguments.folder,
        arguments.against,
        prompt=arguments.prompt,
        steps=arguments.steps,
        per_layer=arguments.per_layer,
        progress=progress(arguments),
        bits=arguments.bits,
    )
    emit(arguments, result.to_dict(), text(result), result=False)
    return 0 if result.ok else ParityFailure.exit_code


def _integrity(arguments: argparse.Namespace) -> int:
    from bcq.files.integrity import check_integrity

    if arguments.against or arguments.prompt or arguments.per_layer:
        raise UsageError("E202", "--integrity compares bytes: leave out --against, --prompt, --per-layer.")
    result = check_integrity(arguments.folder)
    verdict = f"{result.files} files and the codes of {result.matrices} matrices are as they were written"
    lines = [f"integrity     ok: {verdict}"] if result.ok else [f"integrity     FAILED: {result.faults[0]}"]
    lines += [" " * 14 + fault for fault in result.faults[1:]]
    emit(arguments, result.to_dict(), "\n".join(lines), result=not result.ok)
    return 0 if result.ok else InputError.exit_code


def text(result: ParityResult) -> str:
    """The figures, one a line, and the verdict first."""
    tokens = {True: "identical", False: "DIFFERENT", None: "-"}[result.tokens_equal]
    lines = [
        "parity        " + ("ok" if result.ok else f"FAILED: {result.reason or 'not what PyTorch computes'}"),
        f"relative RMS  {result.relative:.2e} (tolerance {result.tolerance:.0e})",
        f"largest error {result.max_abs:.2e}",
        f"cosine        {result.cosine:.7f}",
        f"greedy tokens {tokens}",
    ]
    for name, value in (result.original or {}).items():
        lines.append(f"{name.replace('_', ' ')} against the unquantized weights  {value:.4g}")
    for layer in result.layers:
        lines.append("  ".join(f"{key} {_short(value)}" for key, value in layer.items()))
    return "\n".join(lines)


def _short(value: object) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)
