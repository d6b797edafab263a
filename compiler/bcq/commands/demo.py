# SPDX-License-Identifier: Apache-2.0
"""``bcq demo``: the whole chain on the small trained model that ships with the package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.commands.options import add_verb, emit, progress
from bcq.errors import ParityFailure

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers

EXAMPLES = """\
  bcq demo
  bcq demo --bits 3 --output demo_out"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "demo", "run the whole chain on the model that ships with bcq", EXAMPLES)
    verb.add_argument("-o", "--output", type=Path, help="keep the exported folders here")
    verb.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], metavar="Q", help="default 2 3 4")
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the chain; exit code 5 when an export does not compute what PyTorch computes."""
    from bcq.demo import run as run_demo
    from bcq.demo import text

    result = run_demo(arguments.bits, arguments.output, progress=progress(arguments))
    emit(arguments, result.to_dict(), text(result))
    return 0 if result.ok else ParityFailure.exit_code
