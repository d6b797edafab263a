# SPDX-License-Identifier: Apache-2.0
"""The session of a decoder, and how one run of it is fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.generation.cache import Cache, Feeds, GrowingCache, SharedCache

PROMPT_CHUNK = 512  # longer prompts run in parts: what lies between two nodes would take gigabytes
LAST_LOGITS = "logits_to_keep"  # so many of the last places get logits; exports of older versions have all


class Decoder:
    """Runs tokens through a session.

    Args:
        session: the ``onnxruntime.InferenceSession`` of an export.
        context_length: tokens that the model can have.
        shares_buffer: whether past and present may be one buffer.
    """

    def __init__(self, session: Any, context_length: int, shares_buffer: bool) -> None:
        self.session = session
        self.shares_buffer = shares_buffer
        self._context_length = context_length
        self._with_positions = "position_ids" in {value.name for value in session.get_inputs()}
        optional = {value.name for value in session.get_overridable_initializers()}
        self._last: Feeds = {LAST_LOGITS: np.ones(1, np.int64)} if LAST_LOGITS in optional else {}

    def cache(self, room: int, rows: int = 1) -> Cache:
        """An empty cache, with room for so many tokens where that has to be known."""
        return self.shared_cache(room, rows) if self.shares_buffer else self.growing_cache(rows)

    def growing_cache(self, rows: int = 1) -> GrowingCache:
        """The same for a model whose present is a tensor of its own."""
        return GrowingCache(self.session, rows)

    def shared_cache(self, room: int, rows: int = 1) -> SharedCache:
        """The same for a model whose past and present are one buffer."""
        return SharedCache(self.session, room, max(room, self._context_length), rows)

    def run(self, tokens: Sequence[int], cache: Cache, task: Feeds) -> NDArray[Any]:
        """Runs new tokens of one row; the logits ``[vocabulary]`` are those after the last of them."""
        for begin in range(0, len(tokens), PROMPT_CHUNK):
            part = np.array([tokens[begin : begin + PROMPT_CHUNK]], np.int64)
            logits = self.run_rows(part, np.ones((1, cache.length + part.shape[1]), np.int64), cache, task)
        return logits[0]  # type: ignore[no-any-return]

    def run_rows(
        self, tokens: NDArray[np.int64], mask: NDArray[np.int64], cache: Cache, task: Feeds
    ) -> NDArray[Any]:
        """One run.

        Args:
            tokens: ``[rows, S]``, the new ones.
            mask: ``[rows, cache.length + S]``; 0 marks padding, which is on the left unless the cache is a
                `SharedCache`.
            cache: of the rows; it then has the new tokens too.
            task: from `constant`.

        Returns:
            Logits ``[rows, vocabulary]`` after the last token.
        """
        last: NDArray[Any] = cache.run(self.feeds(tokens, mask), task, tokens.shape[1])[:, -1]
        return last

    def feeds(self, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """What a run is fed beside its cache: positions count the tokens that are no padding."""
        feeds = {"input_ids": tokens, "attention_mask": mask}
        if self._with_positions:
            positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
            feeds["position_ids"] = np.ascontiguousarray(positions[:, -tokens.shape[1] :])
        return feeds

    def constant(self, task: Feeds) -> Feeds:
        """What every run of a task is fed beside tokens and cache."""
        return {**self._last, **{name: np.ascontiguousarray(array) for name, array in task.items()}}
