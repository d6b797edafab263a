# SPDX-License-Identifier: Apache-2.0
"""Stop strings: text passes until one is found, and what may become one is held back."""

from __future__ import annotations

from collections.abc import Sequence

from bcq.errors import UsageError


class Stops:
    """Lets text pass up to the first stop string.

    Args:
        strings: one string or several.

    Attributes:
        found: whether one was found; nothing passes any more.

    Raises:
        UsageError: E202 for an empty string or something else than text.
    """

    def __init__(self, strings: str | Sequence[str]) -> None:
        self._strings = [strings] if isinstance(strings, str) else list(strings)
        for string in self._strings:
            if not isinstance(string, str) or not string:
                raise UsageError("E202", f"stop: got {string!r}, expected text that is not empty.")
        self._held = ""
        self.found = False

    def __bool__(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._strings)

    def push(self, text: str) -> str:
        """The text that can be told after `text` has come."""
        if self.found:
            return ""
        self._held += text
        places = [place for place in map(self._held.find, self._strings) if place >= 0]
        if places:
            self.found = True
            return self._release(min(places))
        return self._release(len(self._held) - self._beginning())

    def rest(self) -> str:
        """What was held back and became no stop string, once no more text comes."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, count: int) -> str:
        told, self._held = self._held[:count], self._held[count:]
        return told

    def _beginning(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max(map(len, self._strings), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-count:]) for string in self._strings):
                return count
        return 0
