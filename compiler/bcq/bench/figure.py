# SPDX-License-Identifier: Apache-2.0
"""The bench as a picture: time against bits for each M, and how much of the memory's speed is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bcq.bench.plan import BATCH, Shape
from bcq.bench.result import GIGA, MICRO, BenchResult, Measurement
from bcq.bench.svg import Canvas, Point

# Colours of Okabe and Ito, which colour-blind people can tell apart; each series has a shape of its own too.
BLUE, SKY, GREEN, ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
VERMILION, PURPLE, GREY, INK, GRID = "#D55E00", "#CC79A7", "#555555", "#222222", "#e3e6ea"

PANEL = (430.0, 270.0)  # a panel with its axes
MARGINS = (74.0, 40.0, 18.0, 48.0)  # left, top, right, bottom of the plot in its panel
HEAD, LEGEND_LINE = 64.0, 22.0
BITS_TICKS = (1, 2, 3, 4, 6, 8, 16, 32)
BITS_RANGE = (0.9, 40.0)


@dataclass(frozen=True)
class Series:
    """How a kind of contender looks, and which measurements are of that kind."""

    label: str
    colour: str
    shape: str
    hollow: bool
    joined: bool
    has: Callable[[Measurement], bool]


def _nbits(lut: bool, arithmetic: str) -> Callable[[Measurement], bool]:
    return lambda m: (
        m.contender.startswith("MatMulNBits")
        and m.contender.endswith(" lut") == lut
        and m.arithmetic == arithmetic
    )


SERIES = (
    Series("BcqMatMul, near-exact", BLUE, "circle", False, True, lambda m: _is_ours(m, "near-exact")),
    Series("BcqMatMul, int8", SKY, "square", False, True, lambda m: _is_ours(m, "int8")),
    Series("BcqMatMul, exact", BLUE, "circle", True, True, lambda m: _is_ours(m, "float32")),
    Series("MatMulNBits, int8", VERMILION, "up", False, False, _nbits(False, "int8")),
    Series("MatMulNBits, look-ups", VERMILION, "diamond", True, False, _nbits(True, "int8")),
    Series("MatMulNBits, fp32", ORANGE, "up", True, False, _nbits(False, "float32")),
    Series("OpenVINO", PURPLE, "diamond", False, False, lambda m: m.family == "openvino"),
    Series("ggml", GREEN, "down", False, False, lambda m: m.family == "ggml"),
    Series("torch int8", GREY, "cross", False, False, lambda m: m.family == "torch"),
    Series("MatMul fp32", GREY, "square", True, False, lambda m: m.bits == 32),
)


def _is_ours(m: Measurement, arithmetic: str) -> bool:
    return m.ours and m.arithmetic == arithmetic


def figure(result: BenchResult, shape: Shape) -> str:
    """One picture of all that was measured at a shape with the most threads.

    Args:
        result: of a run that has the shape.
        shape: (N, K).

    Returns:
        The text of an SVG file.
    """
    panels = _panels(result, shape)
    used = [s for s in SERIES if any(s.has(m) for _, group in panels for m in group)]
    rows = math.ceil(len(panels) / 2)
    legend = HEAD + LEGEND_LINE * math.ceil(len(used) / 4)
    width, height = 2 * PANEL[0] + 20, legend + rows * PANEL[1] + 16
    canvas = Canvas(width, height, f"onnx-bcq bench, {shape[0]} x {shape[1]}")
    canvas.rect(0, 0, width, height, fill="#ffffff")
    canvas.text((24, 30), f"Products with a {shape[0]} x {shape[1]} matrix", 18, fill=INK, font_weight="600")
    canvas.text((24, 50), _subtitle(result), 12, fill=GREY)
    _legend(canvas, used)
    for i, (draw, group) in enumerate(panels):
        draw(_Plot(canvas, (10 + i % 2 * PANEL[0], legend + i // 2 * PANEL[1])), group, used)
    return canvas.to_text()


def shapes(result: BenchResult) -> list[Shape]:
    """The shapes of a result, in its order."""
    return list(dict.fromkeys((m.rows, m.inputs) for m in result.measurements))


Draw = Callable[["_Plot", "list[Measurement]", "Sequence[Series]"], None]


def _panels(result: BenchResult, shape: Shape) -> list[tuple[Draw, list[Measurement]]]:
    """Times for each M, with the most threads and from memory unless M is large; then the roofs."""
    groups = [g for g in result.by_problem() if (g[0].rows, g[0].inputs) == shape]
    panels: list[tuple[Draw, list[Measurement]]] = []
    for tokens in sorted({g[0].tokens for g in groups}):
        of_tokens = [g for g in groups if g[0].tokens == tokens]
        best = max(of_tokens, key=lambda g: (g[0].threads, g[0].cold == (tokens < BATCH)))
        panels.append((_times, best))
    roofs = [g for g in groups if g[0].cold and g[0].tokens == 1]
    return [*panels, *((_roof, g) for g in sorted(roofs, key=lambda g: -g[0].threads)[:2])]


def _subtitle(result: BenchResult) -> str:
    m = result.machine
    versions = f"bcq {m['library']}, onnxruntime {m['onnxruntime']}"
    return f"{m['cpu']}, {m['isa']}; {versions}; medians, bars are quartiles; {m['made'][:10]}"


def _legend(canvas: Canvas, used: Sequence[Series]) -> None:
    for i, series in enumerate(used):
        x, y = 32 + i % 4 * 212, HEAD + i // 4 * LEGEND_LINE + 8
        if series.joined:
            canvas.line((x - 10, y), (x + 10, y), stroke=series.colour, stroke_width=1.6)
        canvas.marker((x, y), series.shape, series.colour, series.hollow)
        canvas.text((x + 16, y + 4), series.label, 12, fill=INK)


class _Plot:
    """The axes of one panel: bits across, on a logarithmic scale; something up."""

    def __init__(self, canvas: Canvas, corner: Point) -> None:
        left, top, right, bottom = MARGINS
        self.canvas = canvas
        self.left, self.top = corner[0] + left, corner[1] + top
        self.right, self.bottom = corner[0] + PANEL[0] - right, corner[1] + PANEL[1] - bottom
        self._up: Callable[[float], float] = float

    def x(self, bits: float) -> float:
        low, high = (math.log(end) for end in BITS_RANGE)
        return self.left + (math.log(bits) - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - self._up(value) * (self.bottom - self.top)

    def axes(self, title: str, unit: str, ticks: Iterable[float], up: Callable[[float], float]) -> None:
        """Paints them; ``up`` takes a value to 0 (bottom) .. 1 (top)."""
        self._up = up
        canvas, middle = self.canvas, (self.top + self.bottom) / 2
        canvas.text((self.left, self.top - 14), title, 13, fill=INK, font_weight="600")
        for tick in ticks:
            y = self.y(tick)
            canvas.line((self.left, y), (self.right, y), stroke=GRID)
            canvas.text((self.left - 8, y + 4), f"{tick:,.10g}", 11, anchor="end", fill=GREY)
        for bits in BITS_TICKS:
            x = self.x(bits)
            canvas.line((x, self.bottom), (x, self.bottom + 4), stroke=GREY)
            canvas.text((x, self.bottom + 17), str(bits), 11, anchor="middle", fill=GREY)
        canvas.line((self.left, self.bottom), (self.right, self.bottom), stroke=GREY)
        across = (self.left + self.right) / 2
        label = "bits per weight, scales included"
        canvas.text((across, self.bottom + 34), label, 11, anchor="middle", fill=GREY)
        canvas.text((self.left - 60, middle), unit, 11, turn=-90, anchor="middle", fill=GREY)

    def note(self, at: Point, text: str, anchor: str = "start") -> None:
        """Grey words on the plot, with a rim that keeps them apart from lines behind."""
        style = {"anchor": anchor, "fill": GREY, "stroke": "#ffffff", "stroke_width": "3"}
        self.canvas.text(at, text, 11, 0, paint_order="stroke", **style)

    def points(self, group: list[Measurement], used: Sequence[Series], rate: bool) -> None:
        """Paints the measurements of a problem, peers first."""
        for series in reversed(used):
            found = sorted((m for m in group if series.has(m)), key=lambda m: m.bits_per_weight)
            if series.joined and len(found) > 1:
                at = [(self.x(m.bits_per_weight), self.y(_value(m, m.microseconds, rate))) for m in found]
                self.canvas.path(at, stroke=series.colour, stroke_width=1.6)
            for m in found:
                self._point(m, series, rate)

    def _point(self, m: Measurement, series: Series, rate: bool) -> None:
        x = self.x(m.bits_per_weight)
        ends = [self.y(_value(m, time, rate)) for time in (m.low, m.high)]
        self.canvas.line((x, ends[0]), (x, ends[1]), stroke=series.colour, stroke_width=1.2)
        y = self.y(_value(m, m.microseconds, rate))
        self.canvas.marker((x, y), series.shape, series.colour, series.hollow)


def _value(m: Measurement, microseconds: float, rate: bool) -> float:
    return m.weight_bytes / (microseconds * MICRO) / GIGA if rate else microseconds


def _times(plot: _Plot, group: list[Measurement], used: Sequence[Series]) -> None:
    """Microseconds, logarithmic; from memory also the time that reading alone takes."""
    first = group[0]
    floor = [_floor(first, bits) for bits in (1.0, 32.0)] if first.cold else []
    values = [*(m.low for m in group), *(m.high for m in group), *floor[:1]]
    low, high = math.log10(min(values) * 0.85), math.log10(max(values) * 1.2)
    ticks = [t for t in _one_two_five(low, high) if low <= math.log10(t) <= high]
    plot.axes(_title(first), "microseconds", ticks, lambda v: (math.log10(v) - low) / (high - low))
    if floor:
        ends = [(plot.x(1), plot.y(floor[0])), (plot.x(32), plot.y(floor[1]))]
        plot.canvas.path(ends, stroke=GREY, stroke_dasharray="5 4")
        at = (plot.x(11), plot.y(_floor(first, 11)) + 22)
        plot.note(at, "reading the weights")
    plot.points(group, used, rate=False)


def _floor(m: Measurement, bits: float) -> float:
    return m.rows * m.inputs * bits / 8 / (m.bandwidth * GIGA) / MICRO


def _one_two_five(low: float, high: float) -> list[float]:
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    return [step * 10.0**decade for decade in decades for step in steps]


def _roof(plot: _Plot, group: list[Measurement], used: Sequence[Series]) -> None:
    """GB/s of weights, under the bandwidth that a plain reader had in the same rounds."""
    first = group[0]
    high = max(first.bandwidth_best, *(_value(m, m.low, True) for m in group)) * 1.12
    step = 10.0 if high > 25 else 5.0 if high > 10 else 2.0
    ticks = [step * i for i in range(int(high / step) + 1)]
    plot.axes(f"Weights read, M = 1, {_threads(first)}", "GB/s", ticks, lambda v: v / high)
    y, best = plot.y(first.bandwidth), plot.y(first.bandwidth_best)
    plot.canvas.rect(plot.left, best, plot.right - plot.left, y - best, fill=GREY, opacity="0.12")
    plot.canvas.line((plot.left, y), (plot.right, y), stroke=GREY, stroke_width=1.4, stroke_dasharray="5 4")
    label = f"memory read, median {first.bandwidth:.1f}, best {first.bandwidth_best:.1f} GB/s"
    plot.note((plot.right - 4, best - 6), label, anchor="end")
    plot.points(group, used, rate=True)


def _title(m: Measurement) -> str:
    return f"M = {m.tokens}, {_threads(m)}, weights {'from memory' if m.cold else 'in cache'}"


def _threads(m: Measurement) -> str:
    return f"{m.threads} thread" + ("s" if m.threads != 1 else "")
