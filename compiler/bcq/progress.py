# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: bars on a terminal, one plain line a step elsewhere, nothing when silent."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """What a long-running function tells while it works: ``start``, one ``step`` an item, ``done``."""

    def start(self, what: str, total: int) -> None:
        """Begins a stage of `total` steps, named by a verb or noun such as ``"quantize"``."""

    def step(self, name: str, detail: str = "") -> None:
        """Reports one finished item, with a short remark such as its error or bits."""

    def done(self) -> None:
        """Ends the stage that `start` began."""


class Silent:
    """Reports nothing."""

    def start(self, what: str, total: int) -> None:
        """Ignored."""

    def step(self, name: str, detail: str = "") -> None:
        """Ignored."""

    def done(self) -> None:
        """Ignored."""


SILENT: Progress = Silent()


class PlainLines:
    """One line a step, with the time left: for logs, pipes and terminals without rich.

    Args:
        stream: where the lines go, standard error by default so that standard output stays clean.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._what = ""
        self._total = 0
        self._count = 0
        self._began = 0.0

    def start(self, what: str, total: int) -> None:
        """Begins a stage; see `Progress.start`."""
        self._what, self._total, self._count, self._began = what, total, 0, time.monotonic()

    def step(self, name: str, detail: str = "") -> None:
        """Prints one line; see `Progress.step`."""
        self._count += 1
        left = time_left(time.monotonic() - self._began, self._count, self._total)
        remark = f"  {detail}" if detail else ""
        self._print(f"{self._what} {self._count}/{self._total} {name}{remark}  {left}")

    def done(self) -> None:
        """Prints how long the stage took; see `Progress.done`."""
        self._print(f"{self._what}: {self._count} of {self._total} in {time.monotonic() - self._began:.1f} s")

    def _print(self, line: str) -> None:
        print(line, file=self._stream if self._stream is not None else sys.stderr, flush=True)


class RichBar:
    """One bar a stage on a terminal; needs the package rich, which is imported only here."""

    def __init__(self) -> None:
        import rich.console
        import rich.progress

        self._rich: Any = rich.progress
        self._console = rich.console.Console(stderr=True)
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def start(self, what: str, total: int) -> None:
        """Opens the bar; see `Progress.start`."""
        self.done()
        columns = (
            self._rich.TextColumn("{task.description:<10}"),
            self._rich.BarColumn(),
            self._rich.MofNCompleteColumn(),
            self._rich.TimeRemainingColumn(),
            self._rich.TextColumn("{task.fields[remark]}"),
        )
        self._bar = self._rich.Progress(*columns, console=self._console)
        self._bar.start()
        self._task = self._bar.add_task(what, total=total, remark="")

    def step(self, name: str, detail: str = "") -> None:
        """Moves the bar by one; see `Progress.step`."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, remark=f"{name} {detail}".strip())

    def done(self) -> None:
        """Closes the bar; see `Progress.done`."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def time_left(elapsed: float, count: int, total: int) -> str:
    """Returns the time that the remaining steps take at the pace so far, as ``"1m 05s left"``."""
    if count <= 0 or total <= count:
        return "0s left"
    seconds = round(elapsed / count * (total - count))
    return f"{seconds // 60}m {seconds % 60:02d}s left" if seconds >= 60 else f"{seconds}s left"


def choose(quiet: bool = False) -> Progress:
    """Returns the progress that fits: silent when `quiet`, bars on a terminal with rich, else plain lines."""
    if quiet:
        return SILENT
    if sys.stderr.isatty():
        try:
            return RichBar()
        except ImportError:
            pass  # rich comes with the extra `compile`; without it plain lines say the same
    return PlainLines()
