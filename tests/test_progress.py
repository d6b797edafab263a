# SPDX-License-Identifier: Apache-2.0
"""Progress: what is printed, where, and that rich is optional."""

from __future__ import annotations

import io
import sys

import pytest

from bcq import progress


def test_plain_lines_name_stage_count_item_and_time_left() -> None:
    stream = io.StringIO()
    lines = progress.PlainLines(stream)
    lines.start("quantize", 2)
    lines.step("wte.weight", "3 bits")
    lines.step("wpe.weight")
    lines.done()
    first, second, last = stream.getvalue().splitlines()
    assert first.startswith("quantize 1/2 wte.weight  3 bits  ")
    assert first.endswith("left")
    assert second == "quantize 2/2 wpe.weight  0s left"
    assert last.startswith("quantize: 2 of 2 in ")


@pytest.mark.parametrize(
    ("elapsed", "count", "total", "expected"),
    [(10.0, 1, 4, "30s left"), (65.0, 1, 2, "1m 05s left"), (3.0, 3, 3, "0s left"), (1.0, 0, 5, "0s left")],
)
def test_time_left_scales_the_pace_so_far(elapsed: float, count: int, total: int, expected: str) -> None:
    assert progress.time_left(elapsed, count, total) == expected


def test_plain_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress.PlainLines()
    lines.start("pack", 1)
    lines.step("x")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pack 1/1 x" in captured.err


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    silent = progress.choose(quiet=True)
    silent.start("pack", 1)
    silent.step("x", "y")
    silent.done()
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(progress.choose(), progress.PlainLines)


def test_a_terminal_gets_bars_where_rich_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="rich comes with the extra `compile`")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(progress.choose(), progress.RichBar)


def test_a_terminal_without_rich_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)  # None makes the import fail
    assert isinstance(progress.choose(), progress.PlainLines)


def test_a_bar_survives_steps_outside_a_stage_and_a_second_stage() -> None:
    pytest.importorskip("rich", reason="rich comes with the extra `compile`")
    bar = progress.RichBar()
    bar.step("before any stage")
    bar.start("one", 1)
    bar.start("two", 1)
    bar.step("x")
    bar.done()
    bar.done()
