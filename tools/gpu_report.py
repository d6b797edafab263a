# SPDX-License-Identifier: Apache-2.0
"""The page of tools/gpu_check.py: tables of times, then what became of every piece."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gpu_pieces import Outcome

HEAD = """\
Made by `make gpu-check`. float16 activations, g = 128. Each launch reads weights that are in no cache: a
time is the median of replays of a captured chain of launches over copies of the weights, gaps included. GB/s
counts codes, factors, activations and results. "faster" is the time of cuBLAS over ours. Before a time is
taken, its result is compared with float64.
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def device_of(outcomes: Sequence[Outcome]) -> str:
    """The device's name as the first table has it, or nothing."""
    names = [str(one["device"]) for outcome in outcomes for one in outcome.tables if one.get("device")]
    return names[0] if names else "an unnamed device"


def page(outcomes: Sequence[Outcome]) -> str:
    """The whole text."""
    parts = [f"# CUDA kernels on {device_of(outcomes)}\n", HEAD]
    for outcome in outcomes:
        for one in outcome.tables:
            parts.append(f"{one['title']}\n\n{table(one['header'], one['rows'])}\n")
    lines = "\n".join(outcome.line() for outcome in outcomes)
    return "\n".join([*parts, f"Pieces:\n\n```\n{lines}\n```\n"])


def write_page(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Writes the page as it stands; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", device_of(outcomes).lower()).strip("-")
    file = folder / f"cuda-{name}.md"
    unnamed = folder / "cuda-an-unnamed-device.md"
    if file != unnamed:
        unnamed.unlink(missing_ok=True)
    file.write_text(page(outcomes), encoding="utf-8")
    return file
