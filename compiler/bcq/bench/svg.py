# SPDX-License-Identifier: Apache-2.0
"""A small writer of SVG pictures: shapes, text, and the markers of plots."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

FONT = "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"
Point = tuple[float, float]


class Canvas:
    """Collects shapes, in the order in which they are painted.

    Args:
        width: in pixels.
        height: in pixels.
        title: for screen readers.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self._size = (width, height)
        self._title = title
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, **style: str | float) -> None:
        """A rectangle from its upper left corner."""
        self._add("rect", {"x": x, "y": y, "width": width, "height": height, **style})

    def line(self, a: Point, b: Point, **style: str | float) -> None:
        """A straight line."""
        self._add("line", {"x1": a[0], "y1": a[1], "x2": b[0], "y2": b[1], **style})

    def path(self, points: Sequence[Point], **style: str | float) -> None:
        """Straight lines from point to point."""
        joined = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._add("polyline", {"points": joined, "fill": "none", **style})

    def text(self, at: Point, text: str, size: float = 12, turn: float = 0, **style: str | float) -> None:
        """One line of text; ``anchor`` is start, middle or end; ``turn`` is in degrees."""
        x, y = at
        attributes: dict[str, str | float] = {"x": x, "y": y, "font-size": size}
        if turn:
            attributes["transform"] = f"rotate({_number(turn)} {_number(x)} {_number(y)})"
        attributes["text-anchor"] = style.pop("anchor", "start")
        self._add("text", attributes | style, escape(text))

    def marker(self, at: Point, shape: str, colour: str, hollow: bool = False, radius: float = 4.5) -> None:
        """A point of a plot: ``circle``, ``square``, ``up``, ``down``, ``diamond`` or ``cross``."""
        x, y = at
        r = radius
        style: dict[str, str | float] = {"fill": "#ffffff" if hollow else colour, "stroke": colour}
        style["stroke-width"] = 1.6 if hollow or shape == "cross" else 0.8
        if shape == "circle":
            self._add("circle", {"cx": x, "cy": y, "r": r, **style})
        elif shape == "cross":
            for sign in (-1, 1):
                self.line((x - r, y - sign * r), (x + r, y + sign * r), stroke=colour, stroke_width=2)
        else:
            corners = [(x + dx * r, y + dy * r) for dx, dy in _CORNERS[shape]]
            self._add(
                "polygon", {"points": " ".join(f"{_number(a)},{_number(b)}" for a, b in corners), **style}
            )

    def to_text(self) -> str:
        """The picture as the text of an ``.svg`` file."""
        width, height = (_number(side) for side in self._size)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" font-family={quoteattr(FONT)}>'
        )
        return "\n".join([head, f"<title>{escape(self._title)}</title>", *self._parts, "</svg>", ""])

    def _add(self, name: str, attributes: dict[str, str | float], content: str = "") -> None:
        pairs = " ".join(
            f"{key.replace('_', '-')}={quoteattr(_number(value))}" for key, value in attributes.items()
        )
        self._parts.append(f"<{name} {pairs}>{content}</{name}>" if content else f"<{name} {pairs}/>")


_CORNERS = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "up": ((0, -1.15), (1.1, 0.9), (-1.1, 0.9)),
    "down": ((0, 1.15), (1.1, -0.9), (-1.1, -0.9)),
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
}


def _number(value: str | float) -> str:
    """Up to two decimals; text as it is."""
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")
