# SPDX-License-Identifier: Apache-2.0
"""``bcq bench``: the kernels against onnxruntime's own, in one interleaved run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bcq.commands.options import add_verb

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers

EXAMPLES = """\
  bcq bench
  bcq bench --json"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "bench", "time the kernels against onnxruntime's own", EXAMPLES)
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Placeholder until bcq.bench lands."""
    raise NotImplementedError
