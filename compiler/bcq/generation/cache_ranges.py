# SPDX-License-Identifier: Apache-2.0
"""How large the keys and values of a model become, on text that it makes up itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from bcq.generation.cache import GrowingCache
from bcq.generation.model import Model

TEXTS, TOKENS = 4, 128


def own_texts(model: Model) -> list[list[int]]:
    """Seeded samples of what the model says after a random token; where it ends a text, it goes on."""
    length = min(TOKENS, model.context_length)
    firsts = np.random.default_rng(0).integers(0, model.vocabulary, TEXTS)
    starts = [[int(first)] for first in firsts]
    answers = model.generate_batch(starts, None, length - 1, temperature=1.0, seed=0)
    return [[*start, *map(int, answer)] for start, answer in zip(starts, answers, strict=True)]


def largest(model: Model, texts: Iterable[Sequence[int]]) -> dict[str, NDArray[np.float32]]:
    """The largest absolute value in each channel ``[heads, size]``, by the name of the cache input."""
    found: dict[str, NDArray[np.float32]] = {}
    for tokens in texts:
        cache = GrowingCache(model.session)
        model.decoder.run(tokens, cache, model.values(None))
        for name, array in cache.past.items():
            most = np.abs(array).max(axis=(0, 2)).astype(np.float32)
            found[name] = np.maximum(most, found.get(name, most))
    return found
