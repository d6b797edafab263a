# SPDX-License-Identifier: Apache-2.0
"""``bcq chat``: a conversation with an exported decoder, on a terminal or through a pipe."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from bcq.commands.generating import add_model_options, add_sampling_options, sampling
from bcq.commands.options import add_verb, emit, warn
from bcq.errors import UsageError

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers
    from bcq.generation.conversation import Conversation

EXAMPLES = """\
  bcq chat out
  bcq chat out --system 'You answer in one sentence.' --temperature 0.7 --top-p 0.9
  echo 'What is a bit?' | bcq chat out --json
on the terminal: /clear forgets, /exit or Ctrl-D ends, Ctrl-C stops an answer"""
HELP = "/clear begins a new conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer"


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "chat", "talk with an exported decoder", EXAMPLES)
    add_model_options(verb)
    verb.add_argument("--system", default="", metavar="TEXT", help="what the model is told first")
    verb.add_argument("--template", type=Path, metavar="FILE", help="chat template in place of the model's")
    verb.add_argument(
        "-n", "--max-new-tokens", type=int, metavar="N", help="tokens an answer (default: all that fit)"
    )
    add_sampling_options(verb)
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reads one line a turn from standard input and prints the answers."""
    from bcq.generation.conversation import Conversation
    from bcq.generation.model import load
    from bcq.generation.template import PlainForm, open_template

    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise UsageError("E202", f"--max-new-tokens: got {arguments.max_new_tokens}, expected at least 1.")
    template = open_template(arguments.folder, arguments.template)
    if isinstance(template, PlainForm):
        warn(arguments, "the model has no chat template; turns are written as 'User: ...', 'Assistant: ...'")
    model = load(arguments.folder, bits=arguments.bits)
    talk = Conversation(model, template, arguments.system, arguments.adapter, **sampling(arguments))
    with _interrupts() as interrupts:
        for line in _lines(arguments.out, not arguments.quiet):
            if line == "/exit":
                break
            _turn(arguments, talk, line, interrupts)
    if arguments.json:
        emit(arguments, {"messages": talk.messages}, "")
    return 0


class _Interrupts:
    """Ctrl-C: ends an answer while there is one, else the line that is being written."""

    def __init__(self) -> None:
        self.answering = False
        self.came = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if not self.answering:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    found = _Interrupts()
    before = signal.signal(signal.SIGINT, found.handle)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(out: TextIO, hints: bool) -> Iterator[str]:
    """What the user says, until the end of input; empty lines are nothing."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 arrow keys and history in input()
        if hints:
            print(HELP, file=sys.stderr)
    while True:
        try:
            with contextlib.redirect_stdout(out):  # input() edits lines only on the real standard output
                line = input("> " if terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}", file=sys.stderr)
            continue
        if line:
            yield line


def _turn(arguments: argparse.Namespace, talk: Conversation, line: str, interrupts: _Interrupts) -> None:
    """One line of the user: a command, or something to answer."""
    if line.startswith("/"):
        if line == "/clear":
            talk.clear()
        print("a new conversation" if line == "/clear" else HELP, file=sys.stderr)
        return
    interrupts.came, interrupts.answering = False, True
    try:
        _answer(arguments, talk, line, interrupts)
    except UsageError as error:  # the conversation is too long; it stays as it was
        print(error, file=sys.stderr)
    finally:
        interrupts.answering = False


def _answer(arguments: argparse.Namespace, talk: Conversation, line: str, interrupts: _Interrupts) -> None:
    pieces = talk.say(line, arguments.max_new_tokens)
    with contextlib.closing(pieces):
        for piece in pieces:
            if not arguments.json:
                print(piece, end="", file=arguments.out, flush=True)
            if interrupts.came:
                break
    if not arguments.json:
        print(file=arguments.out, flush=True)
    if interrupts.came:
        print("[stopped]", file=sys.stderr)
    elif talk.reason == "length" and arguments.max_new_tokens is None:
        print("[cut: the model has no position left; /clear begins a new conversation]", file=sys.stderr)
