# SPDX-License-Identifier: Apache-2.0
"""``bcq report``: one HTML page about one or more exports."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.commands.options import add_verb, emit, progress
from bcq.errors import InputError, UsageError

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers
    from bcq.report_page import Contents

EXAMPLES = """\
  bcq report out                                   # report.html in the present folder
  bcq report out2 out3 out4 -o compared.html --time
  bcq report out --text test.txt --json"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(
        subparsers, "report", "write one HTML page: error, bits, size and time of exports", EXAMPLES
    )
    verb.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="what `bcq export` wrote")
    page = Path("report.html")
    verb.add_argument(
        "-o", "--output", type=Path, default=page, metavar="FILE", help=f"the page (default {page})"
    )
    verb.add_argument("--time", action="store_true", help="measure where the time of a token goes")
    verb.add_argument("--threads", type=int, default=2, metavar="T", help="threads of --time (default 2)")
    verb.add_argument("--text", type=Path, metavar="FILE", help="measure the perplexity on a text")
    verb.add_argument("--limit", type=int, metavar="N", help="only the first N windows of the text")
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reads, measures what was asked for, writes the page."""
    from bcq.report_page import read_contents, to_html

    _check(arguments)
    names = unlike_names(arguments.folders)
    opened = [read_contents(folder, name) for folder, name in zip(arguments.folders, names, strict=True)]
    found = [
        _measured(arguments, contents, folder)
        for contents, folder in zip(opened, arguments.folders, strict=True)
    ]
    text = to_html(found)
    arguments.output.write_text(text, encoding="utf-8")
    data = {"output": str(arguments.output), "exports": [contents.to_json() for contents in found]}
    emit(arguments, data, f"{arguments.output}: {len(text.encode()) / 1e3:.0f} kB", result=False)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.threads < 1:
        raise UsageError("E202", f"--threads: got {arguments.threads}, expected at least 1.")
    if not arguments.output.absolute().parent.is_dir() or arguments.output.is_dir():
        raise InputError("E101", f"{arguments.output}: no file can be made there.", "Give a file's name.")


def unlike_names(folders: list[Path]) -> list[str]:
    """The last parts of paths that tell them apart."""
    whole = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _measured(arguments: argparse.Namespace, contents: Contents, folder: Path) -> Contents:
    if arguments.time:
        from bcq.report_page.timing import with_times

        contents = with_times(contents, folder, arguments.threads)
    if arguments.text is not None:
        from bcq.evaluate import perplexity, read_text

        text = read_text(arguments.text)
        found = perplexity(folder, text, limit=arguments.limit, progress=progress(arguments))
        contents = replace(contents, perplexity=found.perplexity)
    return contents
