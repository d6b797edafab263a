# SPDX-License-Identifier: Apache-2.0
"""``bcq run``: continues a text, or many, with an exported decoder."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands.generating import add_model_options, add_sampling_options, sampling
from bcq.commands.options import add_verb, emit
from bcq.errors import InputError, UsageError

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers
    from bcq.generation.model import Model

EXAMPLES = """\
  bcq run out -p 'The people of the'
  bcq run out -p 'The people of the' --temperature 0.8 --top-k 40 --seed 1 --stop '.'
  bcq run out --tokens 464,661,286 --json
  bcq run out --prompts questions.txt --json      # one prompt a line, together in batches
  cat letter.txt | bcq run out -p -
  bcq run out -p 'name[Blue Spice], food[Chinese] =' --adapter e2e
  bcq run out -p 'The people of the' --native --threads 2       # without onnxruntime"""
_MOST_THREADS = 256
_ROWS = 16  # prompts that run together: more of them share each read of the weights, and take cache


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "run", "continue or answer a text with an exported model", EXAMPLES)
    add_model_options(verb)
    prompt = verb.add_mutually_exclusive_group(required=True)
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="text to continue, - for standard input")
    prompt.add_argument("--prompts", metavar="FILE", help="a text each line, - for standard input")
    prompt.add_argument("--tokens", metavar="IDS", help="token ids to continue, separated by commas")
    verb.add_argument(
        "-n", "--max-new-tokens", type=int, default=40, metavar="N", help="how many (default 40)"
    )
    add_sampling_options(verb)
    native = verb.add_argument_group("without onnxruntime")
    native.add_argument("--native", action="store_true", help="the library's own decoder: GPT-2, Llama, ...")
    native.add_argument("--threads", type=int, metavar="N", help="of --native (default 1)")
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints a text that is continued, and each piece of the answer as soon as it is there."""
    _check_native(arguments)
    prompts = _prompts(arguments)
    model = _opened(arguments)
    return _many(arguments, model, prompts) if arguments.prompts else _one(arguments, model, prompts[0])


def _check_native(arguments: argparse.Namespace) -> None:
    """Refuses what does not go together.

    Raises:
        UsageError: E203 for an option that --native does not have, or that only it has; E202 for no threads.
    """
    if arguments.threads is not None and not arguments.native:
        raise UsageError("E203", "--threads is of --native; OMP_NUM_THREADS sets those of onnxruntime.")
    if arguments.threads is not None and not 1 <= arguments.threads <= _MOST_THREADS:
        raise UsageError("E202", f"--threads: got {arguments.threads}, expected 1 to {_MOST_THREADS}.")
    for option in ("adapter", "prompts"):
        if arguments.native and getattr(arguments, option) is not None:
            raise UsageError(
                "E203", f"--{option} does not go with --native, which runs one text with the base alone."
            )


def _opened(arguments: argparse.Namespace) -> Model:
    if arguments.native:
        from bcq.native import model as native

        return native.load(arguments.folder, threads=arguments.threads or 1, bits=arguments.bits)
    from bcq.generation.model import load

    model = load(arguments.folder, bits=arguments.bits)
    model.use(arguments.adapter)
    return model


def _one(arguments: argparse.Namespace, model: Model, prompt: str | Sequence[int]) -> int:
    began = time.monotonic()
    runner = model.start(prompt, max_new_tokens=arguments.max_new_tokens, **sampling(arguments))
    pieces: list[Any] = []
    if not arguments.json and isinstance(prompt, str) and model.continues:
        print(prompt, end="", file=arguments.out, flush=True)
    for piece in runner.texts() if isinstance(prompt, str) else runner.tokens():
        if not arguments.json:
            print(piece if isinstance(piece, str) else f"{piece} ", end="", file=arguments.out, flush=True)
        pieces.append(piece)
    continuation = "".join(pieces) if isinstance(prompt, str) else pieces
    data = {
        "prompt": prompt,
        "continuation": continuation,
        "reason": runner.answer.reason,
        "prompt_tokens": len(runner.prompt),
        "new_tokens": len(runner.answer.tokens),
        "seconds": time.monotonic() - began,
    }
    emit(arguments, data, "")
    return 0


def _many(arguments: argparse.Namespace, model: Model, prompts: Sequence[str]) -> int:
    began = time.monotonic()
    answers: list[dict[str, Any]] = []
    for begin in range(0, len(prompts), _ROWS):
        rows = prompts[begin : begin + _ROWS]
        made = model.generate_batch(rows, None, arguments.max_new_tokens, **sampling(arguments))
        for prompt, continuation in zip(rows, made, strict=True):
            answers.append({"prompt": prompt, "continuation": continuation})
            if not arguments.json:
                shown = prompt if model.continues else ""
                print(f"{shown}{continuation}\n", file=arguments.out, flush=True)
    if arguments.json:
        emit(arguments, {"answers": answers, "seconds": time.monotonic() - began}, "")
    return 0


def _prompts(arguments: argparse.Namespace) -> list[Any]:
    """One prompt or several: lines that are not empty.

    Raises:
        UsageError: E202 when a file has none.
        InputError: E101 for a file that is not there, E103 for one that is not UTF-8.
    """
    if arguments.tokens is not None:
        return [parse_tokens(arguments.tokens)]
    if arguments.prompts is None:
        return [_read("-") if arguments.prompt == "-" else arguments.prompt]
    lines = [line for line in _read(arguments.prompts).splitlines() if line.strip()]
    if not lines:
        raise UsageError("E202", f"--prompts '{arguments.prompts}': the file has no line, expected prompts.")
    return lines


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise InputError("E103", f"'{name}' is not UTF-8 text: byte {fault.start} is wrong.") from fault


def parse_tokens(text: str) -> list[int]:
    """Reads ``"464,661,286"``.

    Raises:
        UsageError: E202 when an entry is not a number.
    """
    try:
        return [int(entry) for entry in text.replace(",", " ").split()]
    except ValueError as error:
        raise UsageError("E202", f"--tokens {text!r}: expected numbers separated by commas.") from error
