# SPDX-License-Identifier: Apache-2.0
"""Text from tokens, piece by piece: no character is split, and spaces between words are where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BEFORE = 8  # tokens of the prompt that decide how the first piece begins: with a space, or joined to a word
_FURTHER = 3  # tokens that the first of these may need to be whole: a character has four bytes at most
_CUT = "\N{REPLACEMENT CHARACTER}"  # what decoders make of the bytes of half a character


class Pieces:
    """Decodes tokens in a short window, so that a long answer costs no more a token than a short one.

    Args:
        tokenizer: of the package tokenizers.
        before: tokens that stand before the text, which is what follows them. Without any, the text begins as
            the tokenizer begins a text.
        bare: leaves out white space at the beginning: chat templates write it themselves.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = (), bare: bool = False) -> None:
        self._bare = bare
        self._tokenizer = tokenizer
        self._window = self._last_tokens(before)
        # Text of the window that was told already; a character that the prompt cuts is told with the answer.
        self._told = tokenizer.decode(self._window).rstrip(_CUT)
        self._known = len(self._window)

    def push(self, token: int) -> str:
        """The text that is sure after one more token; empty while a character is not complete."""
        self._window.append(token)
        piece = self._news()
        if not piece or piece.endswith(_CUT):
            return ""
        del self._window[: self._known]
        self._known = len(self._window)
        self._told = self._tokenizer.decode(self._window)
        if self._bare:
            piece = piece.lstrip()
            self._bare = not piece
        return piece

    def rest(self) -> str:
        """What is left when no more tokens come: bytes that never became a character."""
        piece = self._news()
        self._window, self._told, self._known = [], "", 0
        return piece

    def _last_tokens(self, before: Sequence[int]) -> list[int]:
        """The end of the prompt from the beginning of a character; half of one spoils a row of bytes."""
        windows = [list(before[-_BEFORE - further :]) for further in range(_FURTHER + 1)]
        whole = (window for window in windows if not self._tokenizer.decode(window).startswith(_CUT))
        return next(whole, windows[0])

    def _news(self) -> str:
        text: str = self._tokenizer.decode(self._window)
        if text.startswith(self._told):
            return text[len(self._told) :]
        # A decoder that tidies spaces has changed what was told already: the new tokens stand for themselves.
        return str(self._tokenizer.decode(self._window[self._known :]))
