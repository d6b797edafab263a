# SPDX-License-Identifier: Apache-2.0
"""First inputs of odd shapes, types and values at run time, and scaling factors of every value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hostile.case import Case
from hostile.subjects import Array, Subject
from hostile.tensors import replace

FAMILY = "activations"
VALUES = "values"
NUMBERS = {
    "NaN": np.nan,
    "Inf": np.inf,
    "-Inf": -np.inf,
    "1e38": 1e38,
    "subnormal": 1e-40,
    "zero": 0.0,
    "-zero": -0.0,
    "one": 1.0,
}
FACTORS = {
    "NaN": np.nan,
    "Inf": np.inf,
    "-Inf": -np.inf,
    "largest": 65504.0,
    "subnormal": 6e-8,
    "zero": 0.0,
    "equal": 0.25,
}


def undeclared(model: onnx.ModelProto, folder: Path) -> None:
    """The graph says nothing about the shape of the first input, so that any reaches the operator."""
    model.graph.input[0].type.tensor_type.ClearField("shape")


def _shapes(subject: Subject) -> Iterator[Case]:
    K = subject.feed.shape[-1]
    right = [(0, K), (1, K), (300, K), (1, 2, K), (2, 0, 3, K), (1, 1, 2, 1, 1, K), (2**31, 0, K), (K,)]
    wrong = [(), (0,), (K - 1,), (2, K + 1), (K, 2), (3, 0), (1,) * 7, (0,) * 12, (2**40, 0)]
    random = np.random.default_rng(7)
    for shape in right:
        value = random.standard_normal(shape).astype(np.float32)
        yield Case(subject, FAMILY, f"shape {list(shape)}", undeclared, feed=value, legal=True)
    for shape in wrong:
        value = np.zeros(shape, np.float32)
        yield Case(subject, FAMILY, f"shape {list(shape)}", undeclared, ("A", "shape"), feed=value)
    deep = np.zeros((1,) * 16 + (K,), np.float32)
    unlimited = subject.domain != "bcq"
    yield Case(subject, FAMILY, "rank 17", undeclared, ("rank",), feed=deep, legal=unlimited)


def _types(subject: Subject, types: tuple[Any, ...]) -> Iterator[Case]:
    for dtype in types:
        value = np.zeros(subject.feed.shape, dtype)
        # ONNX Runtime compares what is fed with what the graph declares and names the graph's input.
        yield Case(
            subject,
            FAMILY,
            f"fed {np.dtype(dtype)}",
            words=("type",),
            places=(f"({subject.first})", subject.first + " ", f"'{subject.first}'", "input", "the_node"),
            feed=value,
        )


def _numbers(subject: Subject) -> Iterator[Case]:
    for name, number in NUMBERS.items():
        one = subject.feed.copy()
        one[0] = 0
        one[0, 5] = number
        yield Case(subject, VALUES, f"one {name}", feed=one, legal=True)
        if np.isfinite(number) and number < 1e30:
            yield Case(subject, VALUES, f"all {name}", feed=np.full_like(one, number), legal=True)


def _factors(subject: Subject, name: str) -> Iterator[Case]:
    value = subject.tensors[name]
    changes: dict[str, NDArray[Any]] = {"negative": -value}
    for what, number in FACTORS.items():
        changes[f"one {what}"] = value.copy()
        changes[f"one {what}"][1, 2, ..., 3] = number
        changes[f"all {what}"] = np.full_like(value, number)
    for what, changed in changes.items():
        yield Case(
            subject, VALUES, f"{name} {what}", replace(name, changed), legal=True, tensors={name: changed}
        )


def _indices(subject: Subject) -> Iterator[Case]:
    N = subject.attributes["N"]
    for bad in (N, -N - 1, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63)):
        for at in (0, 5):
            value: Array = np.zeros((2, 3), np.int64)
            value.flat[at] = bad
            yield Case(subject, FAMILY, f"index {bad} at {at}", undeclared, ("indices",), feed=value)
    for shape in ((), (0,), (1,), (3, 0), (2**40, 0), (0, 2**40), (1,) * 9, (70_000,)):
        value = np.full(shape, -7, np.int64)
        yield Case(subject, FAMILY, f"shape {list(shape)}", undeclared, feed=value, legal=True)
    yield Case(subject, FAMILY, "rank 17", undeclared, ("rank",), feed=np.zeros((1,) * 17, np.int64))


def cases(subject: Subject) -> Iterator[Case]:
    """What is fed, and what stands in the scaling factors."""
    if subject.first == "indices":
        yield from _indices(subject)
        yield from _types(subject, (np.float32, np.int32, np.int8, np.uint64, np.bool_))
    else:
        yield from _shapes(subject)
        yield from _types(subject, (np.float64, np.float16, np.int64, np.int8, np.bool_))
        yield from _numbers(subject)
    if subject.domain == "bcq":
        for name in ("alpha_1", "alpha_rest", "offset"):
            yield from _factors(subject, name)
