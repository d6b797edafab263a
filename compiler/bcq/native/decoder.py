# SPDX-License-Identifier: Apache-2.0
"""The library's decoder in the place of a session: what `bcq.generation.runner.Runner` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bcq.errors import InputError, UnsupportedError
from bcq.generation.cache import Cache, Feeds
from bcq.generation.decoder import Decoder
from bcq.native.library import OpenDecoder


def one_text() -> UnsupportedError:
    """What whoever asks for more is told."""
    return UnsupportedError("E401", "batches do not run without onnxruntime.", "Use bcq.load(folder).")


class NativeCache:
    """Keys and values of a text, which stay in the library (see `bcq.generation.cache.Cache`)."""

    def __init__(self, opened: OpenDecoder) -> None:
        self.opened = opened
        self.length = 0

    def step(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Logits ``[vocabulary]`` after tokens that are new."""
        logits = self.opened.step(tokens)
        self.length = self.opened.seen()
        return logits

    def run(self, feeds: Feeds, constant: Feeds, new: int) -> NDArray[Any]:
        """See `bcq.generation.cache.Cache`: one row, and the logits of its last token."""
        return self.step(feeds["input_ids"][0].tolist())[None, None]

    def keep(self, length: int) -> None:
        """See `bcq.generation.cache.Cache`."""
        self.opened.keep(length)
        self.length = self.opened.seen()


class NativeDecoder(Decoder):
    """Runs tokens through the library: each cache is a decoder of its own, which maps the same file.

    Args:
        file: the ``.onnx`` file.
        vocabulary: how many tokens there are by the configuration.
        threads: that compute.
    """

    def __init__(self, file: Path, vocabulary: int, threads: int) -> None:
        self._file = file
        self._vocabulary = vocabulary
        self._threads = threads
        self._with_positions = False
        self._last: Feeds = {}  # only the last token has logits anyway

    def cache(self, room: int, rows: int = 1) -> NativeCache:
        """An empty cache for one text of so many tokens.

        Raises:
            UnsupportedError: E401 for several texts, or when something in the graph does not run without
                onnxruntime.
            InputError: E102 when its vocabulary is not that of the configuration.
        """
        if rows != 1:
            raise one_text()
        opened = OpenDecoder(self._file, max(room, 1), self._threads)
        if opened.vocabulary != self._vocabulary:
            raise InputError(
                "E102",
                f"{self._file}: got {opened.vocabulary} logits, the configuration says {self._vocabulary}.",
                "Export the model again.",
            )
        return NativeCache(opened)

    def run(self, tokens: Sequence[int], cache: Cache, task: Feeds) -> NDArray[Any]:
        """See `bcq.generation.decoder.Decoder.run`; the library cuts long prompts by itself."""
        assert isinstance(cache, NativeCache)
        return cache.step(tokens)
