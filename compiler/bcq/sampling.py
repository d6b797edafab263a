# SPDX-License-Identifier: Apache-2.0
"""The next token from a row of logits: the likeliest, or drawn from the likeliest ones."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.errors import UsageError

Chooser = Callable[[NDArray[Any]], int]


def chooser(temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> Chooser:
    """A function from logits ``[vocabulary]`` to a token id.

    Args:
        temperature: 0 takes the likeliest token; else logits are divided by it and a token is drawn.
        top_k: draw among so many of the likeliest tokens; 0 for all.
        top_p: draw among the fewest likeliest tokens whose probabilities reach this sum, 0 < top_p <= 1.
        seed: seed of the draws; the same seed gives the same tokens.

    Raises:
        UsageError: E202 for a value outside its range.
    """
    _check("temperature", temperature, _is_number(temperature) and temperature >= 0, "a number, at least 0")
    _check("top_k", top_k, is_integer(top_k) and top_k >= 0, "an integer, at least 0")
    _check("top_p", top_p, _is_number(top_p) and 0 < top_p <= 1, "a number, above 0 and at most 1")
    _check("seed", seed, is_integer(seed) and seed >= 0, "an integer, at least 0")
    if temperature == 0:
        return lambda logits: int(np.argmax(logits))
    random = np.random.default_rng(seed)

    def draw(logits: NDArray[Any]) -> int:
        tokens, probabilities = candidates(logits, temperature, top_k, top_p)
        return int(random.choice(tokens, p=probabilities))

    return draw


def candidates(
    logits: NDArray[Any], temperature: float, top_k: int, top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens that may be drawn, likeliest first (equal ones by id), and their probabilities.

    The largest logit is subtracted before exp, in float64, so that no temperature overflows.
    """
    order = np.argsort(-logits.astype(np.float64), kind="stable")
    if top_k:
        order = order[:top_k]
    scaled = logits[order].astype(np.float64)
    weights = np.exp((scaled - scaled[0]) / temperature)
    probabilities = weights / weights.sum()
    if top_p < 1:
        before = np.cumsum(probabilities) - probabilities  # the first token always stays
        kept = before < top_p
        order, probabilities = order[kept], probabilities[kept]
    return order, probabilities / probabilities.sum()


def is_integer(value: object) -> bool:
    """Whether a value is an integer, Python's or NumPy's; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise UsageError("E202", f"{name}: got {value!r}, expected {expected}.")
