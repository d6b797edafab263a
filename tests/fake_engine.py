# SPDX-License-Identifier: Apache-2.0
"""Engines for tests of the end-to-end bench, chosen by the name of the path that they open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count as counting
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SCORES = np.array([3.0, 1.0, -2.0, 0.5], np.float32)


class FakeEngine:
    """Says 7, 8, 9 ...; one named ``fickle`` says something else every time, ``other`` has other scores."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._requests = counting()

    def start(self, prompt: Sequence[int], count: int) -> Callable[[], int]:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        first = 7 + (next(self._requests) if self._name == "fickle" else 0)
        return counting(first).__next__

    def logits(self, prompt: Sequence[int]) -> NDArray[np.float32]:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        return -SCORES if self._name == "other" else SCORES


def open_engine(path: Path, threads: int) -> FakeEngine:
    """Opens nothing; one named ``broken`` cannot be opened, ``dying`` ends the process."""
    if path.name == "broken":
        raise ValueError("no such format")
    if path.name == "dying":
        raise SystemExit("killed by its own library")
    return FakeEngine(path)
