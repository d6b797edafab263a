# SPDX-License-Identifier: Apache-2.0
"""Spends a budget over units that each offer options of some cost and loss: convex hulls, then what fits.

Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers": with losses that add
up, taking the steps of all lower convex hulls in the order of their slopes is optimal for every budget at
which it ends; between two such budgets a last pass uses what is left. Equal slopes keep the order of units.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

_SLACK = 1e-9  # relative; sums of costs are floats


@dataclass(frozen=True)
class Offer:
    """One way to pack one unit: what it costs of the budget and what it loses, both at least 0."""

    cost: float
    loss: float


def cheapest(units: Sequence[Sequence[Offer]]) -> float:
    """The least that all units together can cost."""
    return sum(min(offer.cost for offer in offers) for offers in units)


def spend(units: Sequence[Sequence[Offer]], budget: float) -> list[int]:
    """Chooses an offer for every unit, so that costs stay within the budget and losses are small.

    Args:
        units: at least one offer each.
        budget: at least :func:`cheapest`.

    Returns:
        Index of the chosen offer of every unit.
    """
    budget *= 1 + _SLACK
    hulls = [_hull(offers) for offers in units]
    chosen, left = _down_the_slopes(units, hulls, budget)
    return _with_the_rest(units, chosen, left)


def _hull(offers: Sequence[Offer]) -> list[int]:
    """Indexes on the lower convex hull of loss over cost, from the cheapest one down to the least loss."""
    order = sorted(range(len(offers)), key=lambda index: (offers[index].cost, offers[index].loss, index))
    hull: list[int] = []
    for index in order:
        if hull and offers[index].loss >= offers[hull[-1]].loss:
            continue
        while len(hull) > 1 and _slope(offers, hull[-2], index) >= _slope(offers, hull[-2], hull[-1]):
            hull.pop()
        hull.append(index)
    return hull


def _slope(offers: Sequence[Offer], here: int, there: int) -> float:
    """Loss that is saved for each unit of cost."""
    return (offers[here].loss - offers[there].loss) / (offers[there].cost - offers[here].cost)


def _down_the_slopes(
    units: Sequence[Sequence[Offer]], hulls: list[list[int]], budget: float
) -> tuple[list[int], float]:
    """Takes hull steps, steepest first, while they fit; the choice, and what is left of the budget."""
    place = [0] * len(units)
    left = budget - sum(offers[hull[0]].cost for offers, hull in zip(units, hulls, strict=True))
    steps: list[tuple[float, int]] = []

    def offer_step(unit: int) -> None:
        hull, at = hulls[unit], place[unit]
        if at + 1 < len(hull):
            heapq.heappush(steps, (-_slope(units[unit], hull[at], hull[at + 1]), unit))

    for unit in range(len(units)):
        offer_step(unit)
    while steps:
        _, unit = heapq.heappop(steps)
        hull, at = hulls[unit], place[unit]
        price = units[unit][hull[at + 1]].cost - units[unit][hull[at]].cost
        if price <= left:  # else this unit is done: its later steps cost even more
            left -= price
            place[unit] += 1
            offer_step(unit)
    return [hull[at] for hull, at in zip(hulls, place, strict=True)], left


def _with_the_rest(units: Sequence[Sequence[Offer]], chosen: list[int], left: float) -> list[int]:
    """Spends what is left on the change that saves most, again and again, on a hull or not."""
    while True:
        best, saved, price = None, 0.0, 0.0
        for unit, offers in enumerate(units):
            now = offers[chosen[unit]]
            for index, offer in enumerate(offers):
                if offer.cost - now.cost <= left and now.loss - offer.loss > saved:
                    best, saved, price = (unit, index), now.loss - offer.loss, offer.cost - now.cost
        if best is None:
            return chosen
        chosen[best[0]] = best[1]
        left -= price
