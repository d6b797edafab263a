# SPDX-License-Identifier: Apache-2.0
"""Messages for Python: errors of public functions name arguments, not options of the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from bcq.errors import BcqError

# Commands stay as they are: they are to be typed in a shell.
_COMMAND = r"`[^`]*`|'(?:bcq|make|pip) [^']*'|\b(?:Run|it|again): .*|\bpip install .*"
_WORDS = re.compile(rf"(?P<command>{_COMMAND})|--(?P<option>[a-z][a-z-]*)(?P<value> '[^']*')?")
_FLAGS = ("allow-partial", "dry-run", "offset", "resume")


@cache
def in_python(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does the same and tells its errors in the words of Python."""

    @wraps(function)
    def told(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except BcqError as error:
            error.message, error.hint = translated(error.message), translated(error.hint)
            error.args = (error.message,)
            raise

    return told


def translated(text: str) -> str:
    """A message with options as arguments: ``--group-size`` is ``group_size``, ``--set`` ``overrides``."""
    return _WORDS.sub(_argument, text)


def _argument(found: re.Match[str]) -> str:
    option, value = found["option"], found["value"] or ""
    if option is None:
        return found[0]
    if option == "set":
        return f"overrides=[{value.strip()}]" if value else "overrides"
    if option.startswith("no-"):
        return f"{_name(option[3:])}=False{value}"
    return _name(option) + ("=True" if option in _FLAGS else "") + value


def _name(option: str) -> str:
    return option.replace("-", "_")
