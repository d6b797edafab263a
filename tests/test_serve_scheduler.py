# SPDX-License-Identifier: Apache-2.0
"""Turns of answers, with runners that only count."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bcq.errors import UsageError
from bcq.serve.limits import Limits
from bcq.serve.scheduler import Event, Full, Job, Scheduler, Stopping


class Counted:
    """A runner of so many steps, each of which waits for `gate`."""

    def __init__(self, name: str, steps: int, order: list[str], gate: threading.Event) -> None:
        self.answer = SimpleNamespace(tokens=[], reason=None)
        self._name, self._steps, self._order, self._gate = name, steps, order, gate

    def step(self) -> str:
        assert self._gate.wait(30)
        self._order.append(self._name)
        self.answer.tokens.append(0)
        if len(self.answer.tokens) == self._steps:
            self.answer.reason = "length"
        return self._name


class Table:
    """Jobs, what they were told, and in which order they had their turns."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.gate = threading.Event()
        self.told: list[Event] = []

    def job(self, name: str, steps: int) -> Job:
        begin: Callable[[], Any] = lambda: Counted(name, steps, self.order, self.gate)  # noqa: E731
        return Job(int(name), begin, self.told.append)

    def wait(self, lasts: int) -> None:
        for _ in range(3000):
            if sum(event.last for event in self.told) >= lasts:
                return
            time.sleep(0.01)
        raise AssertionError(self.told)


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    running = Scheduler(Limits(active=2, waiting=2))
    yield running
    running.close()


def test_active_answers_take_turns_and_the_next_one_gets_a_place_that_is_free(scheduler: Scheduler) -> None:
    table = Table()
    scheduler.submit([table.job("0", 3), table.job("1", 2), table.job("2", 2)])
    assert scheduler.count() in ((0, 3), (2, 1))
    table.gate.set()
    table.wait(3)
    assert table.order == ["0", "1", "0", "1", "0", "2", "2"]
    assert [event.tokens for event in table.told if event.index == 0] == [1, 2, 3]
    assert scheduler.count() == (0, 0)


def test_a_request_is_taken_as_a_whole_or_not_at_all(scheduler: Scheduler) -> None:
    table = Table()
    scheduler.submit([table.job("0", 1), table.job("1", 1)])
    with pytest.raises(Full):
        scheduler.submit([table.job(str(number), 1) for number in (2, 3, 4)])
    scheduler.submit([table.job("2", 1), table.job("3", 1)])
    table.gate.set()
    table.wait(4)
    assert sorted(table.order) == ["0", "1", "2", "3"]


def test_an_answer_that_nobody_waits_for_gives_its_place_to_another(scheduler: Scheduler) -> None:
    table = Table()
    waiting = [table.job("2", 1), table.job("3", 1)]
    scheduler.submit([table.job("0", 1), table.job("1", 1), *waiting])
    waiting[0].cancelled = waiting[1].cancelled = True
    scheduler.submit([table.job("4", 1), table.job("5", 1)])
    table.gate.set()
    table.wait(4)
    assert sorted(table.order) == ["0", "1", "4", "5"]


def test_what_is_late_ends_with_the_reason_and_nothing_new_begins(scheduler: Scheduler) -> None:
    table = Table()
    scheduler.submit([table.job(str(number), 10**9) for number in range(3)])
    table.gate.set()
    scheduler.stop(0.05)
    with pytest.raises(Stopping):
        scheduler.submit([table.job("4", 1)])
    table.wait(3)
    assert all(isinstance(event.fault, Stopping) for event in table.told if event.last)


def test_a_limit_out_of_range_is_named() -> None:
    with pytest.raises(UsageError, match="active: got 0, expected at least 1"):
        Limits(active=0)
    with pytest.raises(UsageError, match="seconds: got -1"):
        Limits(seconds=-1)
