# SPDX-License-Identifier: Apache-2.0
"""The command ``bcq``: arguments in, exit code out. Each verb lives in ``bcq.commands``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

from bcq import __version__
from bcq.commands import VERBS
from bcq.errors import BcqError, InputError, ResourceError, UsageError, is_out_of_memory, out_of_memory

INTERRUPTED = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED = 141  # 128 + SIGPIPE

EPILOG = """\
examples:
  bcq demo                                             # the whole chain on the model that ships with bcq
  bcq inspect MODEL                                    # what would be packed, and what not and why
  bcq export MODEL -o out --bits 3 --group-size 128    # model folder or .onnx file -> packed ONNX
  bcq verify out --against MODEL                       # same results as PyTorch?

exit codes: 0 good, 2 usage, 3 input, 4 unsupported, 5 parity, 6 resources, 1 a bug in bcq"""


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and leaving."""
        raise UsageError("E202", f"{message}.", f"See `{self.prog} --help`.")


def parser() -> Parser:
    """Builds the parser of all verbs; imports nothing heavy."""
    top = Parser(
        prog="bcq",
        description="A tuned transformer in, a small and fast ONNX model out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"bcq {__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for verb in VERBS:
        verb.add_parser(subparsers)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; never raises for what a user can cause."""
    words = list(sys.argv[1:] if argv is None else argv)
    stdout = sys.stdout
    try:
        with _calm_libraries(debug="--debug" in words):
            return _run(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        return PIPE_CLOSED
    except Exception as error:
        fault = as_bcq_error(error)
        if "--debug" in words:
            traceback.print_exc()
        print(_one_line(str(fault)), file=sys.stderr)
        if "--json" in words:
            told = {"code": fault.code, "message": fault.message, "hint": fault.hint}
            print(json.dumps({"error": told}), file=stdout)
        return fault.exit_code


def as_bcq_error(error: Exception) -> BcqError:
    """The error that a user reads: its own if it is one of ours, else the class that its type stands for."""
    if isinstance(error, BcqError):
        return error
    if is_out_of_memory(error):
        return out_of_memory()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" on the disk of '{error.filename}'" if error.filename else ""
        return ResourceError("E601", f"no space left{place}.", "Free some space or choose another --output.")
    if isinstance(error, OSError) and error.filename:
        return InputError("E101", f"'{error.filename}': {error.strerror}.")
    if isinstance(error, ModuleNotFoundError) and not (error.name or "bcq").startswith("bcq"):
        return ResourceError(
            "E603", f"the package '{error.name}' is not installed.", "Run `pip install 'onnx-bcq[compile]'`."
        )
    what = f"{type(error).__name__}: {error}".rstrip(".")
    return BcqError("E999", f"unexpected {what}.", "A bug: run again with --debug and report it.")


def _run(words: list[str]) -> int:
    if not words:
        parser().print_help()
        return 0
    try:
        arguments = parser().parse_args(words)
    except SystemExit as leave:  # --help and --version
        return int(leave.code or 0)
    arguments.words = words
    arguments.out = sys.stdout
    with contextlib.ExitStack() as arguments.cleanup:
        arguments.cleanup.enter_context(contextlib.redirect_stdout(sys.stderr))  # results go to `out`
        code: int = arguments.run(arguments)
    arguments.out.flush()
    return code


@contextlib.contextmanager
def _calm_libraries(debug: bool) -> Iterator[None]:
    """Keeps libraries off the network and, without --debug, their warnings off the screen."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if debug:
        yield
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _give_up_stdout() -> None:
    """The reader has gone: send what is left to nowhere, so that Python's exit does not complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
