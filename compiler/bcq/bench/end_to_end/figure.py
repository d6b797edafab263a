# SPDX-License-Identifier: Apache-2.0
"""Decode speed over file size as a picture: further up is faster, further left is smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bcq.bench.end_to_end.result import EndToEnd, Standing
from bcq.bench.svg import Canvas, Point

SIZE = (760, 420)
LEFT, TOP, RIGHT, BOTTOM = 66, 54, 30, 58
INK, GREY, GRID = "#1b1f24", "#59636e", "#e3e7eb"
MARKS = {
    "bcq": ("circle", "#0b6bcb"),
    "genai": ("square", "#b35900"),
    "llama.cpp": ("diamond", "#2c7a3f"),
    "torch": ("cross", "#6e7781"),
}
MEGA = 1e6


def figure(result: EndToEnd) -> str:
    """The text of an ``.svg`` file; PyTorch's float32 is left out, it would squeeze the rest."""
    shown = [s for s in result.standings if s.family != "torch"]
    threads = f"{result.threads} thread{'s' * (result.threads != 1)}"
    title = f"{result.name}: tokens a second while generating, {threads}"
    canvas = Canvas(*SIZE, title)
    canvas.rect(0, 0, *SIZE, fill="#ffffff")
    canvas.text((LEFT, 24), title, 14, fill=INK, font_weight="600")
    if not shown:
        return canvas.to_text()
    axes = _Axes(canvas, shown)
    axes.paint()
    for standing in shown:
        axes.point(standing)
    _legend(canvas, shown)
    return canvas.to_text()


class _Axes:
    """File size across, logarithmic; tokens a second up, from 0."""

    def __init__(self, canvas: Canvas, shown: Sequence[Standing]) -> None:
        self._canvas = canvas
        sizes = [s.file_bytes / MEGA for s in shown]
        self._low, self._high = math.log(min(sizes) * 0.9), math.log(max(sizes) * 1.25)
        self._most = max(s.decode.high for s in shown) * 1.12
        self._labels: list[tuple[float, float, float]] = []

    def x(self, megabytes: float) -> float:
        share = (math.log(megabytes) - self._low) / (self._high - self._low)
        return LEFT + share * (SIZE[0] - LEFT - RIGHT)

    def y(self, rate: float) -> float:
        return SIZE[1] - BOTTOM - rate / self._most * (SIZE[1] - TOP - BOTTOM)

    def paint(self) -> None:
        """Grid, ticks and titles."""
        canvas, bottom = self._canvas, SIZE[1] - BOTTOM
        for tick in ticks(0, self._most, 6):
            canvas.line((LEFT, self.y(tick)), (SIZE[0] - RIGHT, self.y(tick)), stroke=GRID)
            canvas.text((LEFT - 8, self.y(tick) + 4), f"{tick:,.10g}", 11, anchor="end", fill=GREY)
        for tick in ticks(math.exp(self._low), math.exp(self._high), 7):
            if tick > 0:
                canvas.text((self.x(tick), bottom + 18), f"{tick:,.10g}", 11, anchor="middle", fill=GREY)
        middle = (LEFT + SIZE[0] - RIGHT) / 2
        canvas.text((middle, SIZE[1] - 16), "file, MB", 11, anchor="middle", fill=GREY)
        canvas.text((18, (TOP + SIZE[1] - BOTTOM) / 2), "tokens/s", 11, turn=-90, anchor="middle", fill=GREY)

    def point(self, standing: Standing) -> None:
        """A marker, the quartiles, and a name that stands clear of the others' names."""
        shape, colour = MARKS[standing.family]
        x, spread = self.x(standing.file_bytes / MEGA), standing.decode
        self._canvas.line((x, self.y(spread.low)), (x, self.y(spread.high)), stroke=colour, stroke_width=1.4)
        at = (x, self.y(spread.median))
        self._canvas.marker(at, shape, colour)
        self._name(at, standing)

    def _name(self, at: Point, standing: Standing) -> None:
        text, width = short(standing), 6.2 * len(short(standing))
        right = at[0] + 9 + width < SIZE[0] - 4
        left = at[0] + 9 if right else at[0] - 9 - width
        y = at[1] + 4
        right_end = left + width
        while any(left < b and a < right_end and abs(y - at_y) < 13 for a, b, at_y in self._labels):
            y += 13
        self._labels.append((left, left + width, y))
        self._canvas.text((left, y), text, 11, fill=INK)


def short(standing: Standing) -> str:
    """A name without its family, which the marker says."""
    words = standing.name.removeprefix("llama.cpp ").removeprefix("genai ")
    return words.removesuffix(" (Llama)")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two ends, at most so many."""
    for exponent in range(math.floor(math.log10(high)) - 2, math.floor(math.log10(high)) + 2):
        for factor in (1, 2, 5):
            step = factor * 10.0**exponent
            first, last = math.ceil(low / step), math.floor(high / step)
            if last - first < most:
                return [step * i for i in range(first, last + 1)]
    return []


def _legend(canvas: Canvas, shown: Sequence[Standing]) -> None:
    x = float(LEFT)
    for family in dict.fromkeys(s.family for s in shown):
        shape, colour = MARKS[family]
        canvas.marker((x + 5, 40), shape, colour)
        canvas.text((x + 14, 44), family, 11, fill=GREY)
        x += 30 + 6.5 * len(family)
