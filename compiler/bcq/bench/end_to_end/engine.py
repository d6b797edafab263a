# SPDX-License-Identifier: Apache-2.0
"""What each way of generating offers to the bench, so that all of them are timed by the same loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class Engine(Protocol):
    """An opened model. Greedy, one request at a time; modules with an ``open_engine`` make one."""

    def start(self, prompt: Sequence[int], count: int) -> Callable[[], int]:
        """Begins a request of at most `count` new tokens.

        Returns:
            What gives one token a call, the first one after the prompt.
        """

    def logits(self, prompt: Sequence[int]) -> Logits:
        """Scores ``[vocabulary]`` of the token after a prompt."""


@dataclass(frozen=True)
class Turn:
    """One request, timed.

    Attributes:
        first: seconds until the first token.
        rest: seconds that all further tokens took together.
        tokens: ids.
    """

    first: float
    rest: float
    tokens: list[int]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def take_turn(engine: Engine, prompt: Sequence[int], count: int) -> Turn:
    """Generates `count` tokens, at least 2."""
    began = time.perf_counter()
    step = engine.start(prompt, count)
    tokens = [step()]
    first = time.perf_counter()
    for _ in range(count - 1):
        tokens.append(step())
    return Turn(first - began, time.perf_counter() - first, tokens)


def resident_bytes() -> tuple[int, int]:
    """Peak resident size of this process and its present private part, in bytes; private 0 if not known."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        from bcq.report import peak_ram

        return peak_ram(), 0
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return 1024 * int(sizes.get("VmHWM", 0)), 1024 * int(sizes.get("RssAnon", 0))
