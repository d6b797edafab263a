# SPDX-License-Identifier: Apache-2.0
"""``bcq eval``: perplexity of an exported decoder on a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.commands.options import add_verb, emit, progress

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers

EXAMPLES = """\
  bcq eval out --text test.txt
  bcq eval out --text test.txt --window 256 --limit 40 --json
  bcq eval out --text test.txt --adapter e2e"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "eval", "measure the perplexity of an exported decoder on a text", EXAMPLES)
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="what `bcq export` wrote")
    verb.add_argument("--text", type=Path, required=True, metavar="FILE", help="UTF-8 text")
    verb.add_argument(
        "--window", type=int, metavar="N", help="tokens a window (default: context, up to 1024)"
    )
    verb.add_argument("--limit", type=int, metavar="N", help="only the first N windows")
    verb.add_argument("--bits", type=int, metavar="Q", help="precision of an export that serves several")
    verb.add_argument("--adapter", metavar="NAME", help="task of an export with --adapters, or its folder")
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints."""
    from bcq.evaluate import perplexity, read_text

    text = read_text(arguments.text)
    found = perplexity(
        arguments.folder,
        text,
        window=arguments.window,
        limit=arguments.limit,
        progress=progress(arguments),
        adapter=arguments.adapter,
        bits=arguments.bits,
    )
    line = f"perplexity {found.perplexity:.3f} over {found.tokens} tokens in windows of {found.window}"
    emit(arguments, found.to_dict(), line)
    return 0
