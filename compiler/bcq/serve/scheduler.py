# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: one thread gives each active answer one token after the other, so that all advance.

Each answer has a cache of its own and is computed as it would be alone: no token of it depends on others.
What happens in it goes to the request that waits for it, in order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bcq.generation.answer import Reason
from bcq.generation.runner import Runner
from bcq.serve.limits import Limits


@dataclass(frozen=True)
class Event:
    """What one turn of one answer has brought.

    Attributes:
        index: of the answer within its request.
        text: that is sure now.
        tokens: how many the answer has.
        reason: why it has ended, None while it goes on.
        fault: what went wrong, with which it ends too.
    """

    index: int
    text: str = ""
    tokens: int = 0
    reason: Reason | None = None
    fault: BaseException | None = None

    @property
    def last(self) -> bool:
        """Whether the answer has ended."""
        return self.reason is not None or self.fault is not None


@dataclass
class Job:
    """One answer that is to be made.

    Attributes:
        index: of the answer within its request.
        begin: makes its runner, when there is a place for it.
        tell: takes its events; called from the scheduler's thread.
        cancelled: set by whoever no longer wants it.
    """

    index: int
    begin: Callable[[], Runner]
    tell: Callable[[Event], None]
    cancelled: bool = False
    runner: Runner | None = None


class Full(Exception):
    """There is no place to wait left."""


class Stopping(Exception):
    """The server has been told to stop: nothing new begins, and what is late ends."""


class Scheduler:
    """Runs jobs in a thread of its own until it is closed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._deadline: float | None = None  # set by a signal handler, so no lock guards it
        self._thread = threading.Thread(target=self._work, name="bcq-scheduler", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes the jobs of one request, all or none.

        Raises:
            Full: there is no place for all of them.
            Stopping: after `stop`.
        """
        with self._changed:
            if self._closed or self._deadline is not None:
                raise Stopping
            self._forget_cancelled()
            places = self._limits.active + self._limits.waiting - len(self._active) - len(self._waiting)
            if len(jobs) > places:
                raise Full
            self._waiting.extend(jobs)
            self._changed.notify()

    def count(self) -> tuple[int, int]:
        """How many answers are active, and how many wait."""
        with self._changed:
            self._forget_cancelled()
            return len(self._active), len(self._waiting)

    def stop(self, seconds: float) -> None:
        """Takes nothing new; what has not ended after so many seconds ends with `Stopping`."""
        self._deadline = time.monotonic() + seconds

    def close(self) -> None:
        """Ends everything and the thread."""
        self.stop(0)
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._admit():
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._end_all()
                continue
            for job in list(self._active):
                if self._ends(job):
                    with self._changed:
                        self._active.remove(job)

    def _admit(self) -> bool:
        """Gives free places to those that wait longest; sleeps while there is none; False when closed."""
        with self._changed:
            while not (self._waiting or self._active or self._closed):
                self._changed.wait()
            while self._waiting and len(self._active) < self._limits.active:
                self._active.append(self._waiting.popleft())
            return bool(self._active) or not self._closed

    def _forget_cancelled(self) -> None:
        """Gives the places free of those that nobody waits for any more."""
        self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def _end_all(self) -> None:
        with self._changed:
            late = [*self._active, *self._waiting]
            self._active.clear()
            self._waiting.clear()
        for job in late:
            job.tell(Event(job.index, fault=Stopping()))

    def _ends(self, job: Job) -> bool:
        """One turn; whether it was the last."""
        if job.cancelled:
            return True
        try:
            job.runner = job.runner or job.begin()
            text = job.runner.step()
        except Exception as fault:  # the fault of one answer must not end the others
            job.tell(Event(job.index, fault=fault))
            return True
        answer = job.runner.answer
        event = Event(job.index, text, len(answer.tokens), answer.reason)
        job.tell(event)
        return event.last
