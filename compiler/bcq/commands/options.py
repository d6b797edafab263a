# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share, and the one way in which they print results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.plan import METHODS

if TYPE_CHECKING:
    from bcq.plan import QuantizeOptions
    from bcq.progress import Progress

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_TALK = ("--json", "--quiet", "--debug", "--resume")


def add_verb(subparsers: Subparsers, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """A verb with the options that all verbs have; `examples` are shown under its help."""
    verb = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = verb.add_argument_group("output")
    common.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    common.add_argument("--quiet", action="store_true", help="no progress, no summary")
    common.add_argument("--debug", action="store_true", help="show tracebacks and library warnings")
    return verb


def add_quantize_options(verb: argparse.ArgumentParser) -> None:
    """The options of quantization; absent ones are not set, so that `given` knows what the user chose."""
    group = verb.add_argument_group("quantization")

    def add(flag: str, **settings: Any) -> None:
        group.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add("--bits", type=int, metavar="Q", help="binary planes per matrix, 1 to 8 (default 3)")
    add("--group-size", type=int, metavar="G", help="inputs that share a scale, 0 = whole row (default 128)")
    add("--offset", action="store_true", help="one offset more per group")
    add("--method", choices=METHODS, help="solver (default multistart)")
    add("--no-embeddings", dest="embeddings", action="store_false", help="keep embeddings dense")
    add(
        "--set",
        dest="overrides",
        action="append",
        metavar="PATTERN=HOW",
        help="how matrices of these names are packed: bits ('h.*=3'), with their group size ('h.*=3:g64',"
        " 'h.*=2:g0:offset'), or 'keep'; may be repeated, the last match wins",
    )
    add("--seed", type=int, metavar="N", help="seed of every random choice (default 0)")


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The quantization options that the user has written, by field name of `QuantizeOptions`."""
    names = ("bits", "group_size", "offset", "method", "embeddings", "overrides", "seed")
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def quantize_options(arguments: argparse.Namespace) -> QuantizeOptions:
    """The options with defaults for what the user has not written.

    Raises:
        UsageError: E202 when a value is out of range.
    """
    from bcq.plan import QuantizeOptions

    return QuantizeOptions(**given(arguments))


def recorded(words: Sequence[str], source: Path) -> list[str]:
    """The words of a command for the manifest, without those that cannot change the files that it makes.

    These are the places of source and output, which would make the same export differ from folder to folder
    and tell the names of private ones, and how the command talks. Of the source, the last name stays.
    """
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word == "-o" or (word.startswith("--o") and "--output".startswith(word)):
            next(left, None)
        elif not (word in _TALK or word.startswith(("-o", "--output="))):
            kept.append(source.resolve().name if Path(word) == source else word)
    return kept


def progress(arguments: argparse.Namespace) -> Progress:
    """Bars, plain lines or silence, as terminal and --quiet ask for."""
    from bcq.progress import RichBar, choose

    chosen = choose(quiet=arguments.quiet)
    if isinstance(chosen, RichBar):
        arguments.cleanup.callback(chosen.done)  # an error must find the terminal as it was
    return chosen


def emit(arguments: argparse.Namespace, data: dict[str, Any], text: str, result: bool = True) -> None:
    """Prints what the command found: `data` with --json, else `text`.

    Args:
        arguments: the parsed command line.
        data: one object, plain values.
        text: the same for people.
        result: False for a summary that --quiet leaves out.
    """
    if arguments.json:
        print(json.dumps(data, default=_plain), file=arguments.out)
    elif result or not arguments.quiet:
        print(text, file=arguments.out)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    item = getattr(value, "item", None)  # numpy scalars
    return item() if callable(item) else str(value)
