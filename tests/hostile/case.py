# SPDX-License-Identifier: Apache-2.0
"""One hostile model: how it is made, what must become of it, and how its outcome is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hostile.subjects import NODE, Array, Subject

Mutation = Callable[[onnx.ModelProto, Path], Any]
MODEL = "model.onnx"


def unchanged(model: onnx.ModelProto, folder: Path) -> None:
    """The healthy model; the harm comes from elsewhere."""


@dataclass(frozen=True)
class Case:
    """A model that is damaged in one way.

    Attributes:
        subject: the healthy operator.
        family: kind of damage, the row of the score.
        name: what is damaged, unique within subject and family.
        mutate: damages the model and may write files beside it.
        words: a clear message has at least one of them: the name of the damaged field.
        places: a clear message has at least one of them: the node, or what stands in for it.
        feed: another value of the first input.
        legal: the file is valid by the contract and must compute `right`.
        tensors: what the oracle computes with, where that differs from the subject's.
        values: attributes for the oracle, where they differ.
    """

    subject: Subject
    family: str
    name: str
    mutate: Mutation = unchanged
    words: tuple[str, ...] = ()
    places: tuple[str, ...] = (NODE,)
    feed: Array | None = None
    legal: bool = False
    tensors: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique among all cases."""
        return f"{self.subject.title}/{self.family}/{self.name}"

    def write(self, folder: Path) -> Path:
        """Puts the damaged model into a folder and returns its file."""
        model = self.subject.model()
        self.mutate(model, folder)
        path = folder / MODEL
        path.write_bytes(model.SerializeToString())
        return path

    def feeds(self) -> dict[str, Array]:
        """What one run gets."""
        return {self.subject.first: self.subject.feed if self.feed is None else self.feed}

    def right(self) -> tuple[Array, Array]:
        """The output that a legal case must give, and the error allowed to each element."""
        tensors = {**self.subject.tensors, **self.tensors}
        values = {**self.subject.attributes, **self.values}
        return self.subject.answer(self.feeds()[self.subject.first], tensors, values)


def judge_output(case: Case, output: Array) -> str:
    """``legal`` when the model is valid and the output right, ``accepted`` otherwise."""
    if not case.legal:
        return "accepted"
    with np.errstate(all="ignore"):
        expected, bound = case.right()
        expected = expected.astype(np.float32).astype(np.float64)  # what float32 cannot hold is infinite
        finite = np.isfinite(expected)
        same_kind = output.shape == expected.shape and (np.isfinite(output) == finite).all()
        right = same_kind and (np.abs(output.astype(np.float64) - expected)[finite] <= bound[finite]).all()
    return "legal" if right else "accepted"


def judge_message(case: Case, message: str) -> str:
    """``clear`` when the message names the place and the field, ``opaque`` otherwise.

    Ours must name the node. For the peer the name of its operator is enough: few of its messages name a node.
    """
    low = message.lower()
    places = case.places if case.subject.domain == "bcq" else (*case.places, case.subject.op)
    named = any(place.lower() in low for place in places)
    told = not case.words or any(word.lower() in low for word in case.words)
    return "clear" if named and told and not case.legal else "opaque"


Generator = Callable[[Subject], Iterator[Case]]
