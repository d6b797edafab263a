# SPDX-License-Identifier: Apache-2.0
"""The result of an end-to-end bench as Markdown: contenders, ratios to the best peers, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bcq.bench.end_to_end.profile import to_table as shares_table
from bcq.bench.end_to_end.result import EndToEnd, Spread, Standing
from bcq.report import table

MEGA = 1e6


@dataclass(frozen=True)
class Goal:
    """A ratio that our export of some bits is to reach.

    Attributes:
        bits: of ours.
        what: ``decode``, ``prompt``, ``peak memory`` or ``file``.
        against: how the table names the peers.
        of: which peers.
        least: smallest ratio of ours to the best of them (of theirs to ours for sizes).
    """

    bits: int
    what: str
    against: str
    of: Callable[[Standing], bool]
    least: float


def _named(*names: str) -> Callable[[Standing], bool]:
    return lambda peer: any(peer.name.startswith(name) for name in names)


_FOUR = ("genai int4", "llama.cpp Q4_0")
_EVERY = ("genai", "llama.cpp")
GOALS = (
    Goal(4, "decode", "genai int4, Q4_0", _named(*_FOUR), 1.15),
    Goal(3, "decode", "Q3_K_M", _named("llama.cpp Q3_K_M"), 1.4),
    Goal(3, "decode", "genai int4, Q4_0", _named(*_FOUR), 1.25),
    Goal(2, "decode", "Q2_K", _named("llama.cpp Q2_K"), 1.5),
    Goal(2, "decode", "TQ2_0", _named("llama.cpp TQ2_0"), 1.25),
    *(Goal(bits, "prompt", "all", _named(*_EVERY), 1.2) for bits in (4, 3, 2)),
    *(
        Goal(bits, what, names, _named(*peers), 1.0)
        for what in ("peak memory", "file")
        for bits, names, peers in (
            (4, "genai int4, Q4_0", _FOUR),
            (3, "Q3_K_M", ("llama.cpp Q3_K_M",)),
            (2, "Q2_K, TQ2_0", ("llama.cpp Q2_K", "llama.cpp TQ2_0")),
        )
    ),
)
_SIZES: dict[str, Callable[[Standing], float]] = {
    "peak memory": lambda s: s.peak_bytes,
    "file": lambda s: s.file_bytes,
}


def to_table(result: EndToEnd) -> str:
    """One line a contender."""
    header = [
        "",
        "decode tok/s",
        "prompt tok/s",
        "first token ms",
        "load s",
        "peak MB",
        "file MB",
        "likeness",
    ]
    rows = [
        [
            s.name,
            _spread(s.decode),
            _spread(s.prompt),
            f"{1e3 * s.first.median:,.0f}",
            f"{s.load:.2f}",
            f"{s.peak_bytes / MEGA:,.0f}",
            f"{s.file_bytes / MEGA:,.1f}",
            "-" if np.isnan(s.likeness) else f"{s.likeness:.3f}",
        ]
        for s in result.standings
    ]
    return table(header, rows)


def _spread(found: Spread) -> str:
    digits = 0 if found.median >= 100 else 1
    return f"{found.median:.{digits}f} ({found.low:.{digits}f} - {found.high:.{digits}f})"


def to_goals(result: EndToEnd) -> str:
    """One line a goal whose contenders were there; empty without any."""
    rows = [row for goal in GOALS for row in _judged(goal, result.standings)]
    header = ["ours", "figure", "against the best of", "ratio", "goal", ""]
    return table(header, rows, "lllrrl") if rows else ""


def _judged(goal: Goal, standings: Sequence[Standing]) -> Iterable[list[str]]:
    peers = [s for s in standings if not s.ours and goal.of(s)]
    for mine in (s for s in standings if s.ours and s.bits == goal.bits):
        if not peers:
            continue
        ratio, best = ratio_to_best(mine, peers, goal.what)
        verdict = "reached" if ratio >= goal.least else "missed"
        against = goal.against if len(peers) == 1 else f"{goal.against} ({best.name})"
        yield [mine.name, goal.what, against, f"{ratio:.2f}x", f"{goal.least:.2f}x", verdict]


def ratio_to_best(mine: Standing, peers: Sequence[Standing], what: str) -> tuple[float, Standing]:
    """How many times better one is than the best of others: faster, or smaller."""
    if what in _SIZES:
        size = _SIZES[what]
        best = min(peers, key=size)
        return size(best) / size(mine), best
    best = max(peers, key=lambda s: _rate(s, what))
    return _rate(mine, what) / _rate(best, what), best


def _rate(found: Standing, what: str) -> float:
    return found.decode.median if what == "decode" else found.prompt.median


def to_markdown(result: EndToEnd, with_shares: bool = True) -> str:
    """Title, how it was measured, the contenders, the goals, the profile, who was absent and why."""
    where = result.machine
    rounds = max((s.rounds for s in result.standings), default=0)
    parts = [
        f"### {result.name}, {result.threads} thread{'s' * (result.threads != 1)}",
        f"Prompt of {result.prompt} tokens and {result.tokens} more, {rounds} rounds in turns; medians "
        f"(quartiles). {where['cpu']}, {where['cores']} cores, load {where['load']}, {where['isa']}; bcq "
        f"{where['library']}, onnxruntime {where['onnxruntime']}; {where['made']}.",
        to_table(result),
        to_goals(result),
        shares_table(result.shares) if result.shares and with_shares else "",
        "\n".join(f"- absent: {name}: {reason}" for name, reason in result.absent.items()),
    ]
    return "\n\n".join(part for part in parts if part)
