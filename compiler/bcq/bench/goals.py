# SPDX-License-Identifier: Apache-2.0
"""The project's goals for its kernels, each with what this machine measured and whether that is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bcq import report
from bcq.bench.plan import BATCH
from bcq.bench.result import BenchResult, Measurement, fastest
from bcq.bench.tables import to_machine, to_table

FOUR_BIT = "MatMulNBits 4-bit b=128"
Group = list[Measurement]

# Wanted ratios by bits. A class of arithmetic that has a kernel of its own is judged by its own row.
SHARE = {2: 0.9, 3: 0.9, 4: 0.9}
STREAMING = {2: 1.35, 3: 1.35, 4: 1.1}
STREAMING_Q3_K = {3: 1.8}
CACHED = {"near-exact": {2: 1.4, 3: 0.95, 4: 0.7}, "int8": {2: 2.1, 3: 1.5, 4: 1.1}}
FOUR_TOKENS = {2: 2.6, 3: 1.8, 4: 1.3}
BATCHES = {BATCH: {2: 1.9, 3: 1.5, 4: 1.3}, 256: {2: 1.7, 3: 1.7, 4: 1.7}}
SCALING = 1.9


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        what: of which problem and quantity.
        bits: q.
        arithmetic: ``near-exact`` or ``int8``.
        wanted: least ratio; a share of the bandwidth is a ratio too.
        measured: ratio of medians of one run, or None when there was nothing to compare with.
        against: the peer or quantity that it is a ratio to.
    """

    what: str
    bits: int
    arithmetic: str
    wanted: float
    measured: float | None
    against: str

    @property
    def reached(self) -> bool:
        """Whether it is at least what is wanted."""
        return self.measured is not None and self.measured >= self.wanted

    @property
    def distance(self) -> float | None:
        """How far above what is wanted, as a ratio less 1; negative when it is not reached."""
        return None if self.measured is None else self.measured / self.wanted - 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "reached": self.reached, "distance": self.distance}


def judge(result: BenchResult) -> list[Goal]:
    """All goals, from a run of `bcq.bench.plan.goal_problems`."""
    groups = result.by_problem()
    most = max(group[0].threads for group in groups)
    return [
        *_streaming(_find(groups, 1, most, cold=True), most),
        *_cached(_find(groups, 1, 1, cold=False)),
        *_against(_find(groups, 4, most, cold=True), FOUR_TOKENS, _is_four_bit),
        *(g for m, wanted in BATCHES.items() for g in _against(_find(groups, m, most, False), wanted, _low)),
        *_scaling(_find(groups, 1, 1, cold=False), _find(groups, 1, 2, cold=False)),
    ]


def _find(groups: list[Group], tokens: int, threads: int, cold: bool) -> Group:
    keys = (tokens, threads, cold)
    return next((g for g in groups if (g[0].tokens, g[0].threads, g[0].cold) == keys), [])


def _ours(group: Group, bits: int) -> list[Measurement]:
    return [m for m in group if m.ours and m.bits == bits]


def _is_four_bit(m: Measurement, bits: int) -> bool:
    return m.contender == FOUR_BIT


def _low(m: Measurement, bits: int) -> bool:
    return not m.ours and 2 <= m.bits <= 4


def _as_wide(m: Measurement, bits: int) -> bool:
    return not m.ours and m.bits == (2 if bits == 2 else 4)


def _is_q3_k(m: Measurement, bits: int) -> bool:
    return m.contender == "ggml Q3_K"


def _streaming(group: Group, threads: int) -> Iterator[Goal]:
    for bits, wanted in SHARE.items():
        for m in _ours(group, bits):
            against = f"memory read, {m.bandwidth:.1f} GB/s"
            yield Goal(_what(m), bits, m.arithmetic, wanted, m.share, against)
    yield from _against(group, STREAMING, _as_wide)
    yield from _against(group, STREAMING_Q3_K, _is_q3_k, "ggml Q3_K")


def _cached(group: Group) -> Iterator[Goal]:
    for arithmetic, wanted in CACHED.items():
        # Where int8 has no kernel of its own, the near-exact one computes it and is judged by both rows.
        has_own = any(m.arithmetic == arithmetic for m in group if m.ours)
        chosen = [m for m in group if not m.ours or not has_own or m.arithmetic == arithmetic]
        for goal in _against(chosen, wanted, _is_four_bit):
            yield Goal(goal.what, goal.bits, arithmetic, goal.wanted, goal.measured, goal.against)


def _against(
    group: Group,
    wanted: dict[int, float],
    is_peer: Callable[[Measurement, int], bool],
    missing: str = "no such peer",
) -> Iterator[Goal]:
    for bits, ratio in wanted.items():
        peer = fastest(m for m in group if is_peer(m, bits))
        for m in _ours(group, bits):
            measured = None if peer is None else peer.microseconds / m.microseconds
            name = (
                f"{missing} was measured" if peer is None else f"{peer.contender}, {peer.microseconds:.0f} us"
            )
            yield Goal(_what(m), bits, m.arithmetic, ratio, measured, name)


def _scaling(one: Group, two: Group) -> Iterator[Goal]:
    for m in (m for m in two if m.ours):
        alone = next(a for a in one if a.contender == m.contender)
        ratio = alone.microseconds / m.microseconds
        against = f"1 thread, {alone.microseconds:.0f} us"
        yield Goal("M=1, cache, 2 threads over 1", m.bits, m.arithmetic, SCALING, ratio, against)


def _what(m: Measurement) -> str:
    threads = f"{m.threads} thread" + ("s" if m.threads != 1 else "")
    return f"M={m.tokens}, {'memory' if m.cold else 'cache'}, {threads}"


def to_markdown(goals: list[Goal]) -> str:
    """The table of goals."""
    header = ["problem", "q", "class", "against", "wanted", "measured", ""]
    return report.table(header, [_row(goal) for goal in goals], "lrllrrl")


def _row(goal: Goal) -> list[str]:
    is_share = goal.against.startswith("memory read")
    shown = [f"{v:.0%}" if is_share else f"{v:.2f}x" for v in (goal.wanted, goal.measured or 0.0)]
    distance = goal.distance
    verdict = "not measured" if distance is None else "reached" if goal.reached else f"{distance:.0%}"
    measured = "-" if goal.measured is None else shown[1]
    return [goal.what, str(goal.bits), goal.arithmetic, goal.against, shown[0], measured, verdict]


def to_page(goals: list[Goal], result: BenchResult) -> str:
    """A Markdown section: where it was measured, the table, and how many are reached."""
    return f"## Goals\n\n{to_machine(result)}\n\n{to_markdown(goals)}\n\n{_count(goals)}"


def to_text(goals: list[Goal], result: BenchResult) -> str:
    """The goals after everything that was measured."""
    return f"{to_table(result)}\n\n{to_markdown(goals)}\n\n{_count(goals)}"


def _count(goals: list[Goal]) -> str:
    return f"{sum(goal.reached for goal in goals)} of {len(goals)} goals reached."
