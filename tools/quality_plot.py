# SPDX-License-Identifier: Apache-2.0
"""The curves of `quality_curve.py` as one SVG picture, one panel a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

WIDTH, HEIGHT, MARGIN = 560, 330, 52
COLOURS = ("#c1121f", "#780000", "#f4978e", "#e09f3e", "#495057", "#7b9e89", "#1d70a2", "#5fa8d3", "#8d99ae")
Point = tuple[float, float]


def plot(models: dict[str, Any]) -> str:
    """An SVG document; ``models`` as `quality_curve.py` keeps them."""
    full = {name: model for name, model in models.items() if any(map(shown(model), model["rows"].values()))}
    panels = [panel(name, model, index * HEIGHT) for index, (name, model) in enumerate(full.items())]
    size = f'width="{WIDTH + 270}" height="{HEIGHT * len(panels)}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(panels) + "\n</svg>\n"


def panel(name: str, model: dict[str, Any], top: int) -> str:
    """One model: bits to the right; loss upwards in logarithms, so that better is lower everywhere."""
    curves: dict[str, list[Point]] = {}
    for row in filter(shown(model), model["rows"].values()):
        curves.setdefault(row["method"], []).append((row["bits"], loss(row, model)))
    points = [point for curve in curves.values() for point in curve]
    low, high = min(y for _, y in points), max(y for _, y in points)
    place = placing(low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9, top)
    parts = [frame(name, model, top), *ticks(model, place, low, high)]
    for index, (method, curve) in enumerate(sorted(curves.items())):
        parts.append(line(sorted(curve), COLOURS[index % len(COLOURS)], place, method.startswith("BCQ")))
        parts.append(legend(method, COLOURS[index % len(COLOURS)], top + MARGIN + 18 * index))
    return "\n".join(parts)


def shown(model: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Whether a row has what its model's panel shows."""
    return lambda row: bool(model["reference"] == 1.0 or "divergence" in row)


def loss(row: dict[str, Any], model: dict[str, Any]) -> float:
    """log10 of 1 - cosine, or of the divergence."""
    return math.log10(1 - row["value"] if model["reference"] == 1.0 else row["divergence"])


def placing(low: float, high: float, top: int) -> Callable[[Point], Point]:
    """Where bits 1 to 5 and a loss lie on the picture."""

    def place(point: Point) -> Point:
        x = MARGIN + (point[0] - 1) / 4 * (WIDTH - 2 * MARGIN)
        return x, top + MARGIN + (high - point[1]) / (high - low) * (HEIGHT - 2 * MARGIN)

    return place


def frame(name: str, model: dict[str, Any], top: int) -> str:
    """Title and borders."""
    unit = "1 - mean cosine" if model["reference"] == 1.0 else "divergence from float32, nats"
    title = (
        f'<text x="{MARGIN}" y="{top + 30}" font-weight="bold">{escape(name)}: {unit}, lower is better</text>'
    )
    box = f'width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 2 * MARGIN}" fill="none" stroke="#adb5bd"'
    return f'{title}\n<rect x="{MARGIN}" y="{top + MARGIN}" {box}/>'


def ticks(model: dict[str, Any], place: Callable[[Point], Point], low: float, high: float) -> list[str]:
    """Numbers along both axes."""
    marks = []
    for bits in range(1, 6):
        x, y = place((bits, low))
        marks.append(f'<text x="{x:.0f}" y="{y + 28:.0f}" text-anchor="middle">{bits}</text>')
    for step in range(5):
        level = low + (high - low) * step / 4
        x, y = place((1, level))
        marks.append(f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{10**level:.3g}</text>')
    x, y = place((5, low))
    marks.append(f'<text x="{x + 12:.0f}" y="{y + 28:.0f}">bits a weight</text>')
    return marks


def line(curve: list[Point], colour: str, place: Callable[[Point], Point], strong: bool) -> str:
    """One method."""
    placed = [place(point) for point in curve]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed)
    stroke = f'fill="none" stroke="{colour}" stroke-width="{2.5 if strong else 1.2}"'
    return f'<polyline points="{path}" {stroke}/>{dots}'


def legend(method: str, colour: str, y: int) -> str:
    """Name and colour of a method."""
    return (
        f'<rect x="{WIDTH - 30}" y="{y}" width="14" height="4" fill="{colour}"/>'
        f'<text x="{WIDTH - 10}" y="{y + 7}">{escape(method)}</text>'
    )
