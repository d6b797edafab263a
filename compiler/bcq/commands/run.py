# SPDX-License-Identifier: Apache-2.0
"""``bcq run``: continues a text with an exported decoder."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands.options import add_verb, emit
from bcq.errors import UsageError

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers

EXAMPLES = """\
  bcq run out -p 'The people of the'
  bcq run out -p 'The people of the' --temperature 0.8 --top-k 40 --seed 1
  bcq run out --tokens 464,661,286 --json
  bcq run out -p 'name[Blue Spice], food[Chinese] =' --adapter e2e"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "run", "continue a text with an exported decoder", EXAMPLES)
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="what `bcq export` wrote")
    prompt = verb.add_mutually_exclusive_group(required=True)
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="text to continue")
    prompt.add_argument("--tokens", metavar="IDS", help="token ids to continue, separated by commas")
    verb.add_argument(
        "-n", "--max-new-tokens", type=int, default=40, metavar="N", help="how many (default 40)"
    )
    verb.add_argument("--temperature", type=float, default=0.0, help="0 = greedy (default)")
    verb.add_argument("--top-k", type=int, default=0, metavar="K", help="among the K likeliest, 0 = all")
    verb.add_argument("--top-p", type=float, default=1.0, metavar="P", help="within this probability mass")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling (0)")
    verb.add_argument("--bits", type=int, metavar="Q", help="precision of an export that serves several")
    verb.add_argument("--adapter", metavar="NAME", help="task of an export with --adapters, or its folder")
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the prompt, if it is text, and each piece of the continuation as soon as it is there."""
    prompt: str | Sequence[int] = (
        arguments.prompt if arguments.tokens is None else parse_tokens(arguments.tokens)
    )
    from bcq.generation.model import load

    model = load(arguments.folder, bits=arguments.bits)
    began = time.monotonic()
    pieces: list[str | int] = []
    model.use(arguments.adapter)
    stream = model.stream(prompt, max_new_tokens=arguments.max_new_tokens, **sampling(arguments))
    if not arguments.json:
        print(arguments.prompt or "", end="", file=arguments.out, flush=True)
    for piece in stream:
        if not arguments.json:
            print(piece if isinstance(piece, str) else f"{piece} ", end="", file=arguments.out, flush=True)
        pieces.append(piece)
    continuation = "".join(map(str, pieces)) if isinstance(prompt, str) else pieces
    data = {"prompt": prompt, "continuation": continuation, "seconds": time.monotonic() - began}
    emit(arguments, data, "")
    return 0


def sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the next token is chosen, as `Model.generate` takes it."""
    names = ("temperature", "top_k", "top_p", "seed")
    return {name: getattr(arguments, name) for name in names}


def parse_tokens(text: str) -> list[int]:
    """Reads ``"464,661,286"``.

    Raises:
        UsageError: E202 when an entry is not a number.
    """
    try:
        return [int(entry) for entry in text.replace(",", " ").split()]
    except ValueError as error:
        raise UsageError("E202", f"--tokens {text!r}: expected numbers separated by commas.") from error
