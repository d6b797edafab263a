# SPDX-License-Identifier: Apache-2.0
"""What a budget limits: bits a weight, bytes of the exported file, or the time of one decode step."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bcq.errors import UsageError
from bcq.report import megabytes

BPW, SIZE, LATENCY = "bpw", "size", "latency"
_UNITS = {
    BPW: {"": 1.0},
    SIZE: {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    LATENCY: {"us": 1.0, "ms": 1e3, "s": 1e6},
}
_EXAMPLES = {BPW: "2.5", SIZE: "120MB", LATENCY: "5ms"}
_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{0,9})?|\.\d{1,9})\s*([A-Za-z]*)", re.ASCII)


@dataclass(frozen=True)
class Target:
    """A limit.

    Attributes:
        kind: ``bpw``, ``size`` or ``latency``.
        amount: bits a weight, bytes, or microseconds; above 0.
    """

    kind: str
    amount: float

    @property
    def flag(self) -> str:
        """The option that asks for it."""
        return f"--target-{self.kind}"

    def show(self, amount: float) -> str:
        """An amount of this kind for people, rounded up so that a target of what it shows suffices."""
        if self.kind == SIZE:
            return f"{math.ceil(amount):,} bytes ({megabytes(math.ceil(amount))})"
        if self.kind == BPW:
            return f"{_up(amount):.3f} bits a weight"
        return f"{_up(amount / 1e3):.3f} ms"


def _up(amount: float) -> float:
    """Three digits behind the point."""
    return math.ceil(amount * 1000 - 1e-6) / 1000


def parse_target(kind: str, text: str) -> Target:
    """Reads ``2.5``, ``120MB`` or ``5ms``.

    Args:
        kind: ``bpw``, ``size`` or ``latency``.
        text: a number above 0, with a unit where the kind has units.

    Raises:
        UsageError: E202 when it is something else.
    """
    units = _UNITS[kind]
    folded = {unit.lower(): factor for unit, factor in units.items()}
    match = _NUMBER.fullmatch(text.strip())
    factor = folded.get(match[2].lower()) if match else None
    amount = float(match[1]) * factor if match and factor is not None else 0.0
    if amount <= 0:
        known = "" if kind == BPW else f" and a unit, {', '.join(units)}"
        raise UsageError(
            "E202",
            f"--target-{kind} {text!r}: expected a number above 0{known}.",
            f"For example: --target-{kind} {_EXAMPLES[kind]}.",
        )
    return Target(kind, amount)
