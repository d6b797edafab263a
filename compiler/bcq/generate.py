# SPDX-License-Identifier: Apache-2.0
"""Text generation with an exported decoder: numpy and onnxruntime, tokenizers only for text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path


class Model:
    """An exported decoder, ready to generate."""

    def generate(self, prompt: str | Sequence[int], max_new_tokens: int = 20) -> str | list[int]:
        """Continues `prompt`: text for text, token ids for token ids."""
        raise NotImplementedError

    def stream(self, prompt: str | Sequence[int], max_new_tokens: int = 20) -> Iterator[str | int]:
        """As `generate`, one piece at a time."""
        raise NotImplementedError


def load(folder: str | Path) -> Model:
    """Opens an exported folder."""
    raise NotImplementedError
