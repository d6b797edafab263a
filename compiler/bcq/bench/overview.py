# SPDX-License-Identifier: Apache-2.0
"""The bench over many shapes in a few rows: how each width does against peers, on average and at worst."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bcq import report
from bcq.bench.result import BenchResult, Measurement, fastest
from bcq.bench.tables import CLASSES, PEERS

COLUMNS = ("2-bit", "3-bit", "4-bit", "fp32")
_HEADER = ("M", "threads", "weights", "q", "class", "shapes", *(f"best {name}" for name in COLUMNS))
Key = tuple[int, int, bool, int, str]  # tokens, threads, cold, bits, arithmetic


def to_overview(result: BenchResult) -> str:
    """A Markdown table: times of the best peer over ours, geometric mean over shapes (lowest to highest)."""
    ratios: dict[Key, dict[str, list[float]]] = {}
    for group in result.by_problem():
        peers = [m for m in group if not m.ours]
        for m in group:
            if m.ours and m.arithmetic != "float32" and m.contender.split()[-1] not in ("mapped", "resident"):
                cell = ratios.setdefault(_key(m), {name: [] for name in COLUMNS})
                for name in COLUMNS:
                    best = fastest(filter(PEERS[name], peers))
                    cell[name] += [] if best is None else [best.microseconds / m.microseconds]
    rows = [_row(key, cell) for key, cell in sorted(ratios.items(), key=_order)]
    return report.table(_HEADER, rows, "rrlrlr" + "r" * len(COLUMNS))


def _key(m: Measurement) -> Key:
    return (m.tokens, m.threads, m.cold, m.bits, m.arithmetic)


def _order(entry: tuple[Key, object]) -> tuple[object, ...]:
    """Weights from memory first, then rows, threads, class and bits."""
    tokens, threads, cold, bits, arithmetic = entry[0]
    return (not cold, tokens, threads, arithmetic != "near-exact", bits)


def _row(key: Key, cell: dict[str, list[float]]) -> list[str]:
    tokens, threads, cold, bits, arithmetic = key
    kind = CLASSES[arithmetic]
    shapes = max(map(len, cell.values()))
    start = [str(tokens), str(threads), "memory" if cold else "cache", str(bits), kind, str(shapes)]
    return [*start, *(_spread(cell[name]) for name in COLUMNS)]


def _spread(ratios: Iterable[float]) -> str:
    values = list(ratios)
    if not values:
        return "-"
    mean = math.exp(sum(map(math.log, values)) / len(values))
    return f"{mean:.2f}x ({min(values):.2f} to {max(values):.2f})"
