# SPDX-License-Identifier: Apache-2.0
"""Spending a budget: never above it, near the best that trying everything finds, and always the same."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from bcq.budget.search import Offer, cheapest, spend

OFFERS = st.lists(
    st.builds(Offer, st.integers(0, 60).map(float), st.integers(0, 100).map(float)), min_size=1, max_size=5
)
UNITS = st.lists(OFFERS, min_size=1, max_size=4)


def total(units: list[list[Offer]], chosen: tuple[int, ...] | list[int]) -> tuple[float, float]:
    """Cost and loss of a choice."""
    taken = [offers[index] for offers, index in zip(units, chosen, strict=True)]
    return sum(offer.cost for offer in taken), sum(offer.loss for offer in taken)


def best(units: list[list[Offer]], budget: float) -> float:
    """The least loss of all choices within the budget."""
    every = itertools.product(*(range(len(offers)) for offers in units))
    return min(loss for cost, loss in (total(units, chosen) for chosen in every) if cost <= budget)


def largest_step(units: list[list[Offer]]) -> float:
    return max(max(o.loss for o in offers) - min(o.loss for o in offers) for offers in units)


@settings(max_examples=200, deadline=None)
@given(UNITS, st.integers(0, 200))
def test_a_plan_keeps_within_its_budget_and_within_one_step_of_the_best(
    units: list[list[Offer]], more: int
) -> None:
    budget = cheapest(units) + more
    cost, loss = total(units, spend(units, budget))
    assert cost <= budget * (1 + 1e-9)
    # Going down the slopes is optimal up to the first step that does not fit; taken in part, that step would
    # be at least as good as the best choice.
    assert best(units, budget) <= loss <= best(units, budget) + largest_step(units)


def test_at_the_cheapest_budget_only_the_cheapest_offers_remain() -> None:
    units = [[Offer(3.0, 9.0), Offer(1.0, 10.0)], [Offer(2.0, 5.0), Offer(2.0, 4.0)]]
    assert spend(units, cheapest(units)) == [1, 1]


def test_with_enough_for_everything_every_loss_is_the_least() -> None:
    units = [[Offer(1.0, 10.0), Offer(3.0, 9.0)], [Offer(2.0, 4.0), Offer(1.0, 5.0)]]
    assert spend(units, 1e9) == [1, 0]


def test_steeper_steps_come_first_and_equal_ones_in_the_order_of_the_units() -> None:
    flat, steep = [Offer(1.0, 10.0), Offer(2.0, 9.0)], [Offer(1.0, 10.0), Offer(2.0, 5.0)]
    assert spend([flat, steep], 3.0) == [0, 1]
    assert spend([flat, flat], 3.0) == [1, 0]


def test_an_offer_above_the_hull_is_taken_where_nothing_better_fits() -> None:
    # From (1, 10) the hull goes to (4, 0); (2, 9) lies above it and is all that two units of cost can buy.
    assert spend([[Offer(1.0, 10.0), Offer(2.0, 9.0), Offer(4.0, 0.0)]], 2.0) == [1]


def test_what_is_left_after_a_step_that_does_not_fit_buys_other_steps() -> None:
    units = [[Offer(0.0, 100.0), Offer(10.0, 0.0)], [Offer(0.0, 5.0), Offer(2.0, 1.0)]]
    assert spend(units, 9.0) == [0, 1]
