# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share, and the one way in which they print results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.budget.asked import FILES, NAMES
from bcq.matrices.plan import METHODS

if TYPE_CHECKING:
    from bcq.matrices.plan import QuantizeOptions
    from bcq.progress import Progress

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_TALK = ("--json", "--quiet", "--debug", "--resume")
_FIELDS = ("bits", "group_size", "offset", "method", "embeddings", "overrides", "seed", "also_bits")
_FILE_FLAGS = tuple(f"--{name.replace('_', '-')}" for name in FILES)


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
    add(
        "--also-bits",
        type=_numbers,
        metavar="Q,Q",
        help="further precisions below --bits in the same file, such as 2,3: chosen when it is opened",
    )
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
    _add_budget_options(verb)


def _numbers(text: str) -> tuple[int, ...]:
    from bcq.precisions.further import parse

    return parse(text)


def _add_budget_options(verb: argparse.ArgumentParser) -> None:
    """A target, for which bits, group size and offset are chosen matrix by matrix."""
    group = verb.add_argument_group(
        "budget", "chooses bits, group size and offset of every matrix, instead of --bits and the like"
    )
    target = group.add_mutually_exclusive_group()

    def add(where: Any, flag: str, **settings: Any) -> None:
        where.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add(target, "--target-bpw", metavar="BITS", help="bits a packed weight, scales included, such as 2.5")
    add(target, "--target-size", metavar="SIZE", help="size of the exported model file, such as 120MB")
    add(target, "--target-latency", metavar="TIME", help="time of all products of one new token, such as 5ms")
    add(group, "--cost-table", type=Path, metavar="FILE", help="times from 'bcq bench --cost-table FILE'")
    add(
        group,
        "--sensitivity-text",
        type=Path,
        metavar="TEXT",
        help="text on which it is measured what each matrix's errors cost the outputs; 'self' for text that a"
        " language model writes itself (default: errors of weights alone)",
    )
    add(
        group,
        "--sensitivity",
        type=Path,
        metavar="FILE",
        help="keep what was measured here, and reuse it when the file is there",
    )


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user has written of the options of quantization, by name."""
    return {name: getattr(arguments, name) for name in (*_FIELDS, *NAMES) if hasattr(arguments, name)}


def quantize_options(arguments: argparse.Namespace) -> QuantizeOptions:
    """The options with defaults for what the user has not written; those of a budget are chosen here.

    The budget, None without a target, is then found at `arguments.budget`.

    Raises:
        UsageError: E202 when a value is out of range, E203 when options do not go together, E204 when a
            target cannot be reached.
        BcqError: for a budget, what reading the model raises.
    """
    from bcq.budget.asked import options_of

    source = arguments.model if hasattr(arguments, "model") else arguments.source
    options, arguments.budget = options_of(
        source,
        given(arguments),
        getattr(arguments, "calibrate", None),
        progress(arguments),
        lambda line: warn(arguments, line),
    )
    return options


def warn(arguments: argparse.Namespace, line: str) -> None:
    """Tells the user something on standard error, unless --quiet."""
    if not arguments.quiet:
        print(f"warning: {line}", file=sys.stderr)


def recorded(words: Sequence[str], source: Path) -> list[str]:
    """The words of a command for the manifest, without those that cannot change the files that it makes.

    These are the places of source and output, which would make the same export differ from folder to folder
    and tell the names of private ones, and how the command talks. Of the source and of the files of a budget,
    the last name stays.
    """
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word == "-o" or (word.startswith("--o") and "--output".startswith(word)):
            next(left, None)
        elif any(file.startswith(word.partition("=")[0]) for file in _FILE_FLAGS) and len(word) > len("--"):
            flag, separator, value = word.partition("=")
            kept += [flag, Path(value if separator else next(left, "")).resolve().name]
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
