# SPDX-License-Identifier: Apache-2.0
"""Times of BcqMatMul on one machine, as a file: written by the bench, read by whoever has a latency budget.

The format is described in ``docs/cost-table.md``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from bcq import contract
from bcq.bcq import ceil_div
from bcq.errors import InputError, UsageError

FORMAT = "bcq-cost-table"
FORMAT_VERSION = 1
MAX_BYTES = 64 * 2**20  # far above any real table
MEMORY, CACHE = "memory", "cache"
_HINT = "Make it again with 'bcq bench --cost-table FILE'."


@dataclass(frozen=True)
class Cost:
    """One measured product.

    Attributes:
        rows: N.
        inputs: K.
        bits: q.
        group_size: inputs that share a scaling factor; K where it is row-wise.
        tokens: M.
        accuracy_level: as the operator's attribute.
        threads: threads that computed.
        weights: ``memory`` when the weights streamed from memory, ``cache`` when they were cached.
        kernel: its name.
        bytes: of codes and scaling factors.
        microseconds: median time, preparation of activations included.
        low: first quartile, in microseconds.
        high: third quartile, in microseconds.
        best: shortest time, in microseconds.
    """

    rows: int
    inputs: int
    bits: int
    group_size: int
    tokens: int
    accuracy_level: int
    threads: int
    weights: str
    kernel: str
    bytes: int
    microseconds: float
    low: float
    high: float
    best: float


@dataclass(frozen=True)
class CostTable:
    """What `bcq bench --cost-table` measured.

    Attributes:
        machine: where: ``cpu``, ``cores``, ``isa``, ``library``, ``kernels``, ``made``.
        costs: at least one.
    """

    machine: dict[str, Any]
    costs: tuple[Cost, ...]

    @staticmethod
    def read(path: str | Path) -> CostTable:
        """Reads a file and checks every field.

        Raises:
            InputError: E101 when it is missing, E103 when it is no JSON, E102 when it is no cost table of a
                known version or a field is missing or out of range.
        """
        data = _load(Path(path))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError("E102", f"{path}: this is no cost table: format is not {FORMAT!r}.", _HINT)
        if data.get("format_version") != FORMAT_VERSION:
            version = data.get("format_version")
            raise InputError(
                "E102", f"{path}: format_version: got {version!r}, expected {FORMAT_VERSION}.", _HINT
            )
        entries, machine = data.get("entries"), data.get("machine")
        if not isinstance(entries, list) or not entries or not isinstance(machine, dict):
            raise InputError("E102", f"{path}: expected a list 'entries' and an object 'machine'.", _HINT)
        return CostTable(
            machine, tuple(_cost(entry, f"{path}: entries[{i}]") for i, entry in enumerate(entries))
        )

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        entries = [asdict(cost) for cost in self.costs]
        units = {"time": "microseconds", "size": "bytes"}
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, "units": units, "machine": self.machine}
        new = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            new.write_text(json.dumps({**data, "entries": entries}, indent=1) + "\n", encoding="utf-8")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    def microseconds(
        self,
        rows: int,
        inputs: int,
        bits: int,
        group_size: int,
        tokens: int = 1,
        accuracy_level: int = 0,
        threads: int | None = None,
    ) -> float:
        """Time of one product.

        A measured shape gives its median. Any other is interpolated by the bytes of its codes and scales,
        linearly between the two nearest sizes that were measured with the same bits, tokens, accuracy_level
        and threads; outside the measured sizes time grows in proportion to bytes. Sizes of the same group
        size are used where there are any, else those of the nearest. Weights that stream from memory are
        meant, as in a model; where none were measured so, cached ones.

        Args:
            rows: N.
            inputs: K.
            bits: q.
            group_size: inputs that share a scaling factor, 0 for the whole row.
            tokens: M.
            accuracy_level: as the operator's attribute.
            threads: None for the most that were measured.

        Returns:
            Microseconds.

        Raises:
            UsageError: E202 when the table has nothing with these bits, tokens, accuracy_level and threads.
        """
        if min(rows, inputs) < 1:
            raise UsageError("E202", f"cost of {rows} x {inputs}: expected at least 1 x 1.")
        pool = self._pool(bits=bits, tokens=tokens, accuracy_level=accuracy_level)
        most = max(cost.threads for cost in pool) if threads is None else threads
        pool = _only(pool, "threads", most)
        pool = [cost for cost in pool if cost.weights == MEMORY] or pool
        group = min(group_size or inputs, inputs)
        near = min(pool, key=lambda cost: abs(math.log(_group(cost) / group))).group_size
        near_pool = [c for c in pool if c.group_size == near or (near == group == inputs and _row_wise(c))]
        exact = [c.microseconds for c in near_pool if (c.rows, c.inputs, _group(c)) == (rows, inputs, group)]
        if exact:
            return exact[0]
        return _interpolate(_by_size(near_pool), packed_bytes(rows, inputs, bits, group))

    def _pool(self, **wanted: int) -> list[Cost]:
        pool = list(self.costs)
        for name, value in wanted.items():
            pool = _only(pool, name, value)
        return pool


def packed_bytes(rows: int, inputs: int, bits: int, group_size: int) -> int:
    """Bytes of codes and float16 scaling factors in the layout ``tile16``, without an offset."""
    padded = ceil_div(rows, contract.TILE_ROWS) * contract.TILE_ROWS
    words = ceil_div(inputs, contract.WORD_BITS)
    return padded * bits * (4 * words + 2 * ceil_div(inputs, group_size or inputs))


def _group(cost: Cost) -> int:
    return min(cost.group_size, cost.inputs)


def _row_wise(cost: Cost) -> bool:
    return cost.group_size >= cost.inputs


def _only(pool: list[Cost], name: str, value: int) -> list[Cost]:
    found = [cost for cost in pool if getattr(cost, name) == value]
    if not found:
        known = sorted({getattr(cost, name) for cost in pool})
        raise UsageError("E202", f"cost table: it has no {name} {value}, only {known}.", _HINT)
    return found


def _by_size(pool: list[Cost]) -> list[tuple[int, float]]:
    """Size and time, by size; shapes of equal size give their mean."""
    times: dict[int, list[float]] = {}
    for cost in pool:
        times.setdefault(cost.bytes, []).append(cost.microseconds)
    return [(size, sum(times[size]) / len(times[size])) for size in sorted(times)]


def _interpolate(points: list[tuple[int, float]], size: int) -> float:
    for (low, fast), (high, slow) in pairwise(points):
        if low <= size <= high:
            return fast + (slow - fast) * (size - low) / (high - low)
    end, time = points[0] if size <= points[0][0] else points[-1]
    return time * size / end


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError("E101", f"{path}: {error.strerror}.", _HINT) from error
    if len(raw) > MAX_BYTES:
        raise InputError("E102", f"{path}: this is larger than {MAX_BYTES:,} bytes, no cost table is.", _HINT)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError("E103", f"{path}: this is no JSON: {error}.", _HINT) from error


def _cost(entry: Any, where: str) -> Cost:
    if not isinstance(entry, dict):
        raise InputError("E102", f"{where}: got {type(entry).__name__}, expected an object.", _HINT)
    return Cost(**dict(_values(entry, where)))


def _values(entry: dict[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for field in fields(Cost):
        value = entry.get(field.name)
        if not _fits(field.name, str(field.type), value):
            raise InputError(
                "E102", f"{where}.{field.name}: got {value!r}, expected {_expected(field)}.", _HINT
            )
        yield field.name, value


def _fits(name: str, kind: str, value: Any) -> bool:
    if kind == "str":
        return isinstance(value, str) and (name != "weights" or value in (MEMORY, CACHE))
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else (int, float)):
        return False
    if name == "accuracy_level":
        return 0 <= value <= 4
    return value > 0 and (isinstance(value, int) or math.isfinite(value))


def _expected(field: Any) -> str:
    if field.name == "weights":
        return f"{MEMORY!r} or {CACHE!r}"
    if field.name == "accuracy_level":
        return "0 to 4"
    return {"str": "a string", "int": "a whole number above 0"}.get(field.type, "a number above 0")
