# SPDX-License-Identifier: Apache-2.0
"""Where the time of a generated token goes, by operator: onnxruntime's profiler on an export."""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from bcq.report import table

PRODUCTS = "BcqMatMul"
ATTENTION = ("GroupQueryAttention", "MultiHeadAttention", "Attention")
LISTED = 8  # operator types that a table names
_KERNEL = "_kernel_time"
Event = dict[str, Any]


@dataclass(frozen=True)
class Shares:
    """The median decode step of an export.

    Attributes:
        name: of the export.
        threads: that it ran on.
        operators: microseconds of a step by operator type, largest first.
        nodes: microseconds of a step by node name, largest first.
        run: microseconds of a whole run, with what onnxruntime does between operators, the profiler included.
    """

    name: str
    threads: int
    operators: dict[str, float]
    nodes: dict[str, float]
    run: float

    @property
    def products_and_attention(self) -> float:
        """The part of all operators' time that packed products and fused attention have."""
        wanted = sum(self.operators.get(op, 0.0) for op in (PRODUCTS, *ATTENTION))
        return wanted / sum(self.operators.values())


def profile_export(folder: Path, threads: int, prompt: Sequence[int], tokens: int, name: str = "") -> Shares:
    """Generates with the profiler on.

    Args:
        folder: an exported decoder.
        threads: to run on.
        prompt: token ids, at least one.
        tokens: to generate, at least 2; the first comes with the prompt and does not count.
        name: how tables call it; that of the folder if empty.
    """
    from bcq.bench.end_to_end.engine_bcq import open_model

    with tempfile.TemporaryDirectory(prefix="bcq-bench-") as temporary:
        model = open_model(folder, threads, Path(temporary) / "profile")
        count = sum(1 for _ in islice(model.stream(list(prompt), tokens), tokens))
        events = json.loads(Path(model.session.end_profiling()).read_text(encoding="utf-8"))
    return shares(events, count - 1, name or folder.resolve().name, threads)


def shares(events: Iterable[Event], steps: int, name: str, threads: int) -> Shares:
    """Medians over the last `steps` runs of a trace, which are single tokens."""
    kernels: list[Event] = []
    runs: list[Event] = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            kernels.append(event)
        elif event.get("name") == "model_run":
            runs.append(event)
    last = sorted(runs, key=_begin)[-steps:]
    inside = _by_run(kernels, last)
    by_type = [_durations(events, lambda event: str(event["args"]["op_name"])) for events in inside]
    by_node = [_durations(events, _node) for events in inside]
    whole = median(float(run["dur"]) for run in last)
    return Shares(name, threads, _medians(by_type), _medians(by_node), whole)


def _node(event: Event) -> str:
    return str(event["name"]).removesuffix(_KERNEL)


def _begin(event: Event) -> float:
    return float(event["ts"])


def _by_run(kernels: Iterable[Event], runs: Sequence[Event]) -> list[list[Event]]:
    """The kernels that began within each run; runs follow each other."""
    begins = [_begin(run) for run in runs]
    found: list[list[Event]] = [[] for _ in runs]
    for event in kernels:
        at = bisect_right(begins, _begin(event)) - 1
        if at >= 0:
            found[at].append(event)
    return found


def _durations(events: Iterable[Event], key: Callable[[Event], str]) -> Counter[str]:
    """Microseconds by a key of kernels."""
    found: Counter[str] = Counter()
    for event in events:
        found[key(event)] += event["dur"]
    return found


def _medians(found: Sequence[Counter[str]]) -> dict[str, float]:
    keys = {key for counter in found for key in counter}
    medians = {key: float(median(counter[key] for counter in found)) for key in keys}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def to_table(found: Sequence[Shares]) -> str:
    """Share of the operators' time by type, one column an export; the last rows sum up."""
    most: Counter[str] = Counter()
    for each in found:
        for op, time in each.operators.items():
            most[op] = max(most[op], time)  # type: ignore[assignment]
    listed = [op for op, _ in most.most_common(LISTED)]
    rows = [[op, *(_share(each, each.operators.get(op, 0.0)) for each in found)] for op in listed]
    rest = [sum(time for op, time in each.operators.items() if op not in listed) for each in found]
    rows.append(["others", *(_share(each, time) for each, time in zip(found, rest, strict=True))])
    rows.append(["products and attention", *(f"{each.products_and_attention:.1%}" for each in found)])
    rows.append(["all operators", *(f"{sum(each.operators.values()) / 1e3:.2f} ms" for each in found)])
    rows.append(["whole run", *(f"{each.run / 1e3:.2f} ms" for each in found)])
    return table(["profiler on", *(each.name for each in found)], rows)


def _share(each: Shares, time: float) -> str:
    return f"{time / sum(each.operators.values()):.1%} ({time:,.0f} us)"
