# SPDX-License-Identifier: Apache-2.0
"""What follows one prompt: its tokens and its text, and why it ended."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from numpy.typing import NDArray

from bcq.generation.pieces import Pieces
from bcq.generation.sampling import Chooser
from bcq.generation.stops import Stops

Reason = Literal["stop", "length"]


class Answer:
    """Takes logits, chooses tokens and tells text.

    Args:
        choose: how a token is chosen.
        most: so many tokens end it; 0 ends it at once.
        end_tokens: ids that end it and are no part of it.
        pieces: makes text of the tokens, where text is wanted or looked at for stop strings.
        stops: strings that end it and are no part of its text.

    Attributes:
        most: as given.
        tokens: the ids so far; the one that completes a stop string is the last of them.
        reason: "stop" for an end token or a stop string, "length" for the limit, None before the end.
    """

    def __init__(
        self,
        choose: Chooser,
        most: int,
        end_tokens: Collection[int],
        pieces: Pieces | None = None,
        stops: Stops | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.reason: Reason | None = None if most else "length"
        self._choose = choose
        self.most = most
        self._end_tokens = end_tokens
        self._pieces = pieces
        self._stops = stops or Stops(())

    def take(self, scores: NDArray[Any]) -> str:
        """Chooses a token by logits ``[vocabulary]``; returns the text that is sure now."""
        token = self._choose(scores)
        if token in self._end_tokens:
            self.reason = "stop"
            return self._rest()
        self.tokens.append(token)
        text = self._stops.push(self._pieces.push(token)) if self._pieces else ""
        if self._stops.found:
            self.reason = "stop"
        elif len(self.tokens) == self.most:
            self.reason = "length"
            return text + self._rest()
        return text

    def _rest(self) -> str:
        if self._pieces is None:
            return ""
        return self._stops.push(self._pieces.rest()) + self._stops.rest()
