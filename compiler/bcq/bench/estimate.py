# SPDX-License-Identifier: Apache-2.0
"""What a plan would do, without doing it: contenders, minutes, disk. For ``--dry-run`` and for full disks."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bcq.bcq import ceil_div
from bcq.bench.contender import Contender
from bcq.bench.measure import COLD_BYTES, SAMPLE_SECONDS, WARM_UP, check_copies, settle
from bcq.bench.plan import Plan, Problem
from bcq.bench.roster import Roster, roster
from bcq.errors import ResourceError

# Rates of a modest core, for estimates only.
READ_PER_SECOND = 6e9  # bytes of weights that one thread multiplies with one token
OPERATIONS_PER_SECOND = 1e11  # of one thread, with many tokens
WRITE_PER_SECOND = 140e6  # bytes of copies drawn, written and opened
OPEN_PER_SECOND = 240e6  # bytes of copies opened once more, packed and checked
SLOW = 40.0
SCALES = 1.1  # bytes of weights with scales over those without


@dataclass(frozen=True)
class Estimate:
    """What a plan takes.

    Attributes:
        seconds: about.
        disk: bytes of temporary files at a time.
        rosters: who takes part, by shape.
        products: problems times contenders.
    """

    seconds: float
    disk: int
    rosters: dict[tuple[int, int], Roster]
    products: int


def estimate(plan: Plan) -> Estimate:
    """Adds up formulas; nothing is measured.

    Raises:
        UsageError: E202 as `bcq.bench.run`.
    """
    check_copies(plan)
    rosters = {(rows, inputs): roster(plan, rows, inputs) for rows, inputs, _ in plan.groups()}
    seconds, disk, products = 0.0, 0, 0
    for (rows, inputs, cold), problems in plan.groups().items():
        who = rosters[rows, inputs].contenders
        sizes = {c.name: _bytes(c, rows * inputs) * _copies(c, rows * inputs, cold) for c in who}
        disk = max(disk, sum(sizes.values()))
        seconds += sum(sizes.values()) / WRITE_PER_SECOND
        for problem in problems:
            taking = [c for c in who if c.takes(problem.tokens, problem.cold)]
            products += len(taking)
            seconds += sum(sizes[c.name] / OPEN_PER_SECOND for c in taking)
            seconds += (WARM_UP + plan.rounds + 2) * sum(_sample(c, problem) for c in taking)
    return Estimate(seconds, disk, rosters, products)


def check_disk(needed: int) -> None:
    """Refuses a plan whose temporary files have no room.

    Raises:
        ResourceError: E601.
    """
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            "E601",
            f"{folder}: the bench writes {needed / 1e9:.1f} GB at a time, {free / 1e9:.1f} GB are free.",
            "Set TMPDIR to a folder with more room, or take fewer peers or one shape.",
        )


def _bytes(contender: Contender, weights: int) -> int:
    return int(weights * contender.bits / 8 * (SCALES if contender.bits < 32 else 1))


def _copies(contender: Contender, weights: int, cold: bool) -> int:
    return ceil_div(COLD_BYTES, _bytes(contender, weights)) if cold else 1


def _sample(contender: Contender, problem: Problem) -> float:
    """Seconds of one contender's turn."""
    weights = problem.rows * problem.inputs
    reading = _bytes(contender, weights) / READ_PER_SECOND
    computing = 2 * problem.tokens * weights / OPERATIONS_PER_SECOND
    product = max(reading, computing) / problem.threads * (SLOW if contender.slow else 1)
    turn = product * _copies(contender, weights, problem.cold)
    waiting = settle(problem, contender)
    return turn + waiting if problem.cold else max(turn, SAMPLE_SECONDS) + product + waiting


def to_text(plan: Plan, found: Estimate) -> str:
    """The plan for people."""
    lines = [f"would measure {len(plan.problems)} problems, {plan.rounds} rounds each:"]
    for rows, inputs, cold in plan.groups():
        group = [p for p in plan.problems if p.group == (rows, inputs, cold)]
        sizes = ", ".join(f"M={p.tokens} on {p.threads}" for p in group)
        lines.append(f"  N={rows} K={inputs}, weights {'from memory' if cold else 'in cache'}: {sizes}")
    first = next(iter(found.rosters.values()))
    lines += ["contenders:", *(f"  {c.name:<34}{c.kernel}".rstrip() for c in first.contenders)]
    if first.absent:
        lines += ["absent:", *(f"  {name}: {reason}" for name, reason in first.absent.items())]
    lines.append(f"about {minutes(found.seconds)}, {found.disk / 1e9:.1f} GB of temporary files at a time")
    return "\n".join(lines)


def minutes(seconds: float) -> str:
    """``"40 seconds"`` or ``"12 minutes"``."""
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
