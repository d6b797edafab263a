# SPDX-License-Identifier: Apache-2.0
"""What an end-to-end bench found: medians and spread of every contender, and why others are absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bcq.bench.end_to_end.engine import Turn
from bcq.bench.end_to_end.plan import Entrant
from bcq.bench.end_to_end.profile import Shares


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds: its median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        low, median, high = (float(x) for x in np.percentile(values, [25, 50, 75]))
        return cls(median, low, high)


@dataclass(frozen=True)
class Standing:
    """What one contender did.

    Attributes:
        name: as tables show it.
        family: ``bcq``, ``genai``, ``llama.cpp`` or ``torch``.
        bits: of its class; 32 for float32.
        decode: tokens a second after the first.
        prompt: tokens of the prompt a second: its length over the time to the first token.
        first: seconds to the first token.
        load: seconds that opening took.
        peak_bytes: largest resident size of its process, Python and libraries included.
        private_bytes: what of it, after the last round, is no file's.
        file_bytes: graph and weights on the disk.
        likeness: cosine of its scores after the prompt to those of the dense model in float32; nan unknown.
        rounds: turns that count.
    """

    name: str
    family: str
    bits: int
    decode: Spread
    prompt: Spread
    first: Spread
    load: float
    peak_bytes: int
    private_bytes: int
    file_bytes: int
    likeness: float
    rounds: int

    @property
    def ours(self) -> bool:
        """Whether it is one of our exports."""
        return self.family == "bcq"


@dataclass(frozen=True)
class EndToEnd:
    """One run.

    Attributes:
        name: of the model.
        threads: of every contender.
        prompt: tokens of the prompt.
        tokens: generated tokens.
        machine: what ran it, of `bcq.bench.machine.machine`.
        standings: in the order of tables.
        absent: reason by name.
        shares: where a step's time goes, by export; empty unless asked for.
    """

    name: str
    threads: int
    prompt: int
    tokens: int
    machine: dict[str, Any]
    standings: tuple[Standing, ...]
    absent: dict[str, str]
    shares: tuple[Shares, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; a likeness that is not known is null."""
        found = asdict(self)
        for row in found["standings"]:
            row["likeness"] = None if np.isnan(row["likeness"]) else row["likeness"]
        return found


def standing(
    entrant: Entrant,
    turns: Sequence[Turn],
    prompt: int,
    load: float,
    memory: tuple[int, int],
    likeness: float,
) -> Standing:
    """Adds up the turns of a contender."""
    return Standing(
        name=entrant.name,
        family=entrant.family,
        bits=entrant.bits,
        decode=Spread.of([(len(turn.tokens) - 1) / turn.rest for turn in turns]),
        prompt=Spread.of([prompt / turn.first for turn in turns]),
        first=Spread.of([turn.first for turn in turns]),
        load=load,
        peak_bytes=memory[0],
        private_bytes=memory[1],
        file_bytes=entrant.file_bytes,
        likeness=likeness,
        rounds=len(turns),
    )
