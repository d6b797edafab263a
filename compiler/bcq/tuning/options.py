# SPDX-License-Identifier: Apache-2.0
"""What a user may choose when tuning, checked before any work."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from bcq.errors import UsageError

TASKS = ("lm", "classification", "similarity", "distill")
PARTS = ("alpha_1", "alpha_rest", "offset", "embeddings", "bias", "norm")
SOURCE_FIELDS = ("mr", "input", "source", "prompt", "text")
TARGET_FIELDS = ("ref", "refs", "target", "output", "completion")


@dataclass(frozen=True)
class TuneOptions:
    """How a task is tuned.

    Attributes:
        task: ``lm`` (a text follows a text), ``classification`` (a label follows a text), ``similarity`` (two
            texts and a score) or ``distill`` (texts whose embeddings a teacher gives).
        train: parts that are trained, see `bcq.nn.train_only`.
        epochs: passes over the data; ignored when ``steps`` is given.
        steps: updates.
        batch_size: examples an update.
        learning_rate: of Adam at the first update; it falls linearly to zero.
        group_scaling: divide the gradients of factors by the group size, as the paper does.
        source: field of the input in a jsonl file; empty for the first of `SOURCE_FIELDS` that is there.
        target: field of the answer, likewise; it may hold a list of equally good answers.
        separator: what stands between both; None for the tokenizer's ``<sep>``, or a line break.
        max_length: tokens of an example; None for the model's context. Longer ones are an error.
        score_range: lowest and highest score of ``similarity``; they become cosines of 0 and 1.
        checkpoint_every: updates between checkpoints; 0 for none.
        evaluate_every: updates between evaluations on the dev file; 0 for the end alone.
        seed: of the order of examples and of a new head.

    Raises:
        UsageError: E202 for a value out of range.
    """

    task: str = "lm"
    train: tuple[str, ...] = ("alpha_1",)
    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 1e-2
    group_scaling: bool = True
    source: str = ""
    target: str = ""
    separator: str | None = None
    max_length: int | None = None
    score_range: tuple[float, float] = (0.0, 5.0)
    checkpoint_every: int = 100
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.task in TASKS, "task", self.task, " or ".join(TASKS))
        _check(bool(self.train), "train", self.train, "at least one part")
        for part in self.train:
            _check(part in PARTS, "train", part, f"some of {', '.join(PARTS)}")
        _check(0 < self.epochs < math.inf, "epochs", self.epochs, "a number above 0")
        _check(self.steps is None or self.steps > 0, "steps", self.steps, "at least 1")
        _check(self.batch_size > 0, "batch_size", self.batch_size, "at least 1")
        _check(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a number above 0")
        _check(self.max_length is None or self.max_length > 1, "max_length", self.max_length, "at least 2")
        _check(self.score_range[0] < self.score_range[1], "score_range", self.score_range, "LOW below HIGH")
        for name in ("checkpoint_every", "evaluate_every", "seed"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")

    def updates(self, examples: int) -> int:
        """How many updates a run on so many examples makes."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil(self.epochs * examples / self.batch_size))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}


def _check(good: bool, name: str, got: object, expected: str) -> None:
    if not good:
        raise UsageError("E202", f"{name}: got {got!r}, expected {expected}.")
