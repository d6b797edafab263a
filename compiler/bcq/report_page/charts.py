# SPDX-License-Identifier: Apache-2.0
"""The page's pictures, as inline SVG in the page's own colours."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bcq.bench.svg import Canvas
from bcq.report_page.contents import Contents, rms
from bcq.report_page.style import SERIES

WIDTH = 1080.0
MEGA = 1e6
_LAYER = re.compile(r"\.(\d+)\.")


def error_bars(contents: Contents) -> str:
    """Relative error of every packed matrix in the order of the model, the worst one in red."""
    known = [(row.name, rms(row) or 0.0) for row in contents.rows if row.packed and rms(row) is not None]
    if not known:
        return ""
    left, top, high, height = 52.0, 18.0, 190.0, 248.0
    most = max(error for _, error in known) or 1.0
    worst = max(known, key=lambda item: item[1])
    canvas = Canvas(WIDTH, height, f"{contents.name}: relative error of each matrix; largest {worst[0]}")
    for part in (0.0, 0.5, 1.0):
        y = top + high * (1 - part)
        canvas.line((left, y), (WIDTH, y), style="stroke:var(--line)")
        canvas.text((left - 6, y + 4), f"{most * part:.0%}", 11, anchor="end", style=_SOFT)
    step = (WIDTH - left) / len(known)
    for i, (name, error) in enumerate(known):
        tall = high * error / most
        colour = "--red" if name == worst[0] else "--blue"
        width = max(step * 0.8, 0.6)
        canvas.rect(left + i * step, top + high - tall, width, tall, style=f"fill:var({colour})")
    _layer_ticks(canvas, [name for name, _ in known], (left, top + high), step)
    return canvas.to_text()


_SOFT = "fill:var(--soft)"
_INK = "fill:var(--ink)"


def _layer_ticks(canvas: Canvas, names: Sequence[str], corner: tuple[float, float], step: float) -> None:
    """Numbers of layers where each begins, as many as there is room for."""
    begins: dict[int, int] = {}
    for i, name in enumerate(names):
        found = _LAYER.search(name)
        if found:
            begins.setdefault(int(found[1]), i)
    free = -1.0
    for layer, i in begins.items():
        x = corner[0] + i * step
        if x > free:
            canvas.text((x, corner[1] + 16), str(layer), 11, style=_SOFT)
            free = x + 30
    canvas.text((corner[0], corner[1] + 32), "layer", 11, style=_SOFT)


def time_bars(found: Sequence[Contents], types: Sequence[str]) -> str:
    """Milliseconds of a token by operator, one bar an export; types beyond the last colour are one."""
    timed = [contents for contents in found if contents.operators]
    if not timed:
        return ""
    left, bar, gap = 210.0, 26.0, 12.0
    longest = max(sum(contents.operators.values()) for contents in timed)
    canvas = Canvas(WIDTH, len(timed) * (bar + gap) + 4, "Time of a generated token by operator")
    for i, contents in enumerate(timed):
        y, x = i * (bar + gap), left
        canvas.text((left - 10, y + 18), short(contents.name, 30), 12, anchor="end", style=_INK)
        for colour, time in zip(SERIES, split(contents.operators, types), strict=False):
            width = (WIDTH - left - 80) * time / longest
            canvas.rect(x, y, width, bar, style=f"fill:var({colour})")
            x += width
        total = sum(contents.operators.values()) / 1e3
        canvas.text((x + 8, y + 18), f"{total:.2f} ms", 12, style=_INK)
    return canvas.to_text()


def split(operators: dict[str, float], types: Sequence[str]) -> list[float]:
    """Times of the listed types, and the rest of them at the end."""
    listed = [operators.get(op, 0.0) for op in types]
    return [*listed, sum(operators.values()) - sum(listed)]


def size_and_error(found: Sequence[Contents]) -> str:
    """Two bars an export: size of its files, error of its weights."""
    known = [(c.name, c.model_bytes / MEGA, c.error or 0.0) for c in found]
    left, half, row = 210.0, 330.0, 30.0
    sizes, errors = max(size for _, size, _ in known), max(error for _, _, error in known) or 1.0
    canvas = Canvas(WIDTH, len(known) * row + 26, "Size and error of each export")
    canvas.text((left, 14), "size, MB", 11, style=_SOFT)
    canvas.text((left + half + 110, 14), "relative error of the weights", 11, style=_SOFT)
    for i, (name, size, error) in enumerate(known):
        y = 24 + i * row
        canvas.text((left - 10, y + 14), short(name, 30), 12, anchor="end", style=_INK)
        for begin, share, colour, text in (
            (left, size / sizes, "--blue", f"{size:,.1f}"),
            (left + half + 110, error / errors, "--orange", f"{error:.1%}" if error else "not known"),
        ):
            canvas.rect(begin, y, half * share, 20, style=f"fill:var({colour})")
            canvas.text((begin + half * share + 6, y + 14), text, 12, style=_INK)
    return canvas.to_text()


def short(name: str, most: int) -> str:
    """A name that fits, its beginning cut if need be."""
    return name if len(name) <= most else "..." + name[-most + 3 :]
