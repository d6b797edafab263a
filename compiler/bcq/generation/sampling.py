# SPDX-License-Identifier: Apache-2.0
"""The next token from a row of logits: the likeliest, or drawn from the likeliest ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.errors import UsageError

_POOL = 256  # so many of the likeliest nearly always reach top_p; sorting all tokens costs milliseconds


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest token; else logits are divided by it and a token is drawn.
        top_k: draw among so many of the likeliest tokens; 0 for all.
        top_p: draw among the fewest likeliest tokens whose probabilities reach this sum, 0 < top_p <= 1.
        min_p: draw among tokens that are at least so likely, as a share of the likeliest one, 0 to 1.
        repetition_penalty: logits of tokens of prompt and answer are divided by it where they are positive
            and multiplied where they are negative; 1 for none (Keskar et al., 2019, arXiv:1909.05858,
            section 4.1, as transformers has it).
        presence_penalty: taken off the logits of tokens that the answer has, -2 to 2.
        frequency_penalty: taken off for each time that the answer has the token, -2 to 2.
        seed: seed of the draws; the same seed gives the same tokens.

    Raises:
        UsageError: E202 for a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        valid = {
            "temperature": (_number(self.temperature, 0), "a number, at least 0"),
            "top_k": (is_integer(self.top_k) and self.top_k >= 0, "an integer, at least 0"),
            "top_p": (_number(self.top_p, 0, 1) and self.top_p > 0, "a number, above 0 and at most 1"),
            "min_p": (_number(self.min_p, 0, 1), "a number from 0 to 1"),
            "repetition_penalty": (
                _number(self.repetition_penalty, 0) and self.repetition_penalty > 0,
                "a number above 0",
            ),
            "presence_penalty": (_number(self.presence_penalty, -2, 2), "a number from -2 to 2"),
            "frequency_penalty": (_number(self.frequency_penalty, -2, 2), "a number from -2 to 2"),
            "seed": (is_integer(self.seed) and self.seed >= 0, "an integer, at least 0"),
        }
        for name, (holds, expected) in valid.items():
            if not holds:
                raise UsageError("E202", f"{name}: got {getattr(self, name)!r}, expected {expected}.")


OPTIONS = tuple(field.name for field in fields(Sampling))


class Chooser:
    """Chooses the tokens of one answer, one after the other.

    Args:
        sampling: how.
        prompt: what the answer follows; only the repetition penalty asks for it.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self._how = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._prompt = np.unique(np.asarray(prompt, np.int64))
        self._counts: Counter[int] = Counter()
        self._punishes = (
            sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        )

    def __call__(self, logits: NDArray[Any]) -> int:
        """The next token for logits ``[vocabulary]``."""
        how = self._how
        scores = self._penalized(logits) if self._punishes else logits
        if how.temperature == 0:
            token = int(np.argmax(scores))
        else:
            tokens, probabilities = candidates(scores, how.temperature, how.top_k, how.top_p, how.min_p)
            sums = np.cumsum(probabilities)
            drawn = np.searchsorted(sums, self._random.random() * sums[-1], side="right")
            token = int(tokens[min(int(drawn), len(tokens) - 1)])
        self._counts[token] += 1
        return token

    def _penalized(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        how, scores = self._how, logits.astype(np.float64)
        made = np.fromiter(self._counts, np.int64, len(self._counts))
        seen = np.union1d(self._prompt, made)
        factor = np.where(scores[seen] > 0, 1 / how.repetition_penalty, how.repetition_penalty)
        scores[seen] *= factor
        times = np.fromiter(self._counts.values(), np.float64, len(self._counts))
        scores[made] -= how.presence_penalty + how.frequency_penalty * times
        return scores


def chooser(prompt: Sequence[int] = (), **options: Any) -> Chooser:
    """A `Chooser` for the options of `Sampling`."""
    return Chooser(Sampling(**options), prompt)


def candidates(
    logits: NDArray[Any], temperature: float, top_k: int, top_p: float, min_p: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens that may be drawn and their probabilities; likeliest first (equal ones by id) if some cannot.

    The largest logit is subtracted before exp, in float64, so that no temperature overflows.
    """
    scores = logits.astype(np.float64)
    top = scores.max()
    everyone = np.arange(len(scores))
    order = _likeliest(scores, top_k) if 0 < top_k < len(scores) else everyone
    weights = np.exp((scores[order] - top) / temperature)
    total = weights.sum()
    if top_p < 1:
        order, weights = _within(scores, order, weights, top_p * total)
    if min_p > 0:
        kept = weights >= min_p * weights.max()
        order, weights = order[kept], weights[kept]
    return order, weights / weights.sum()


def _within(
    scores: NDArray[np.float64], order: NDArray[np.int64], weights: NDArray[np.float64], mass: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The fewest likeliest tokens whose weights reach `mass`; the first always stays."""
    for count in (_POOL, len(order)):
        first = _likeliest(scores[order], min(count, len(order)))
        chosen = weights[first]
        before = np.cumsum(chosen) - chosen
        if before[-1] + chosen[-1] >= mass or count == len(order):
            break
    kept = before < mass
    kept[0] = True
    return order[first][kept], chosen[kept]


def _likeliest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest, largest first, equal ones by place."""
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        pool = np.flatnonzero(scores >= least)
    else:
        pool = np.arange(len(scores))
    return pool[np.argsort(-scores[pool], kind="stable")][:count]


def is_integer(value: object) -> bool:
    """Whether a value is an integer, Python's or NumPy's; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: object, least: float, most: float = float(np.finfo(np.float64).max)) -> bool:
    """Whether a value is a number of this range; NaN and infinity are in none."""
    return not isinstance(value, bool) and isinstance(value, Real) and least <= float(value) <= most
