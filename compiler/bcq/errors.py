# SPDX-License-Identifier: Apache-2.0
"""The few exception classes: each carries a code, a hint and the exit code of the command line."""

from __future__ import annotations

import errno
import re

_MEMORY = re.compile(
    r"allocate memory|not enough memory|bad.alloc|std::bad_alloc|out of memory", re.IGNORECASE
)


_LONGEST = 1000  # characters of a message; what is cut out comes from a file


def one_line(text: str) -> str:
    """A message as a terminal, a log and JSON can hold it: one line, no control characters, not too long.

    Names and values in a message may come from a file that means harm. Of one that is too long the middle
    is left out: its beginning says what is wrong, its end what was expected.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return "".join(_printable(letter) for letter in text)


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else " " if letter.isspace() else "?"


class BcqError(Exception):
    """A fault that has one clear reason.

    The message says what went wrong, in which file, tensor or node, what was found and what was expected; the
    hint says what to do.

    Args:
        code: stable identifier, for example ``"E103"``; the first digit names the class.
        message: one sentence or two; kept as `one_line` makes them.
        hint: what the user can do, or an empty string.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        self.code = code
        self.message = one_line(message)
        self.hint = one_line(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        text = f"error[{self.code}]: {self.message}"
        return f"{text} {self.hint}" if self.hint else text


class UsageError(BcqError):
    """E2xx: options that do not fit together or match nothing."""

    exit_code = 2


class InputError(BcqError):
    """E1xx: a file, folder, tensor or node that is missing, damaged or malicious."""

    exit_code = 3


class UnsupportedError(BcqError):
    """E4xx: valid input that this version does not handle."""

    exit_code = 4


class ParityFailure(BcqError):
    """E5xx: results differ by more than the tolerance."""

    exit_code = 5


class ResourceError(BcqError):
    """E6xx: memory, disk or a needed program is missing."""

    exit_code = 6


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether memory ran out, in whatever way Python, NumPy, PyTorch or ONNX Runtime say so."""
    if isinstance(fault, OSError):
        return fault.errno == errno.ENOMEM
    own = isinstance(fault, BcqError)  # told already, perhaps about another program's memory
    return isinstance(fault, MemoryError) or (not own and _MEMORY.search(str(fault)) is not None)


def out_of_memory(what: str = "") -> ResourceError:
    """The error for it; ``what``: a clause that says what was being done."""
    return ResourceError(
        "E602",
        f"out of memory{what and ' '}{what}.",
        "Close other programs, or use a machine with more memory.",
    )
