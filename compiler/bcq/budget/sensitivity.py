# SPDX-License-Identifier: Apache-2.0
"""What errors in each matrix cost the model's outputs: a table that is measured once and kept as a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from bcq.budget.formats import Format, parse_label
from bcq.errors import BcqError, InputError

FILE_FORMAT = "bcq-sensitivity"
FILE_VERSION = 1
MAX_BYTES = 64 * 2**20  # far above any real table
MEASURES = ("kl", "cosine", "weights")
_HINT = "Remove it, and it is measured again."
_SMALLEST = 1e-12  # losses and errors below it are rounding


@dataclass(frozen=True)
class Sensitivity:
    """Of one matrix.

    Attributes:
        rows: N.
        inputs: K.
        points: pairs of a relative weight error and what the outputs lose with it, both rising.
        errors: relative weight error of each format.
    """

    rows: int
    inputs: int
    points: tuple[tuple[float, float], ...]
    errors: Mapping[Format, float] = field(default_factory=dict)

    def loss(self, form: Format) -> float:
        """What the outputs lose when the matrix is packed so.

        Between two measured errors the logarithm of the loss is linear in that of the error. Outside of them
        the loss is in proportion to the error, as the second order of a Taylor series at its minimum says.
        """
        error = 0.0 if form.bits is None else self.errors[form]
        if error <= _SMALLEST:
            return 0.0
        low = [point for point in self.points if point[0] <= error]
        high = [point for point in self.points if point[0] > error]
        if not (low and high):
            near = low[-1] if low else high[0]
            return near[1] * error / near[0]
        (e0, l0), (e1, l1) = low[-1], high[0]
        share = math.log(error / e0) / math.log(e1 / e0)
        return math.exp(math.log(l0) + share * math.log(l1 / l0))


@dataclass(frozen=True)
class Table:
    """Of a model.

    Attributes:
        measure: what a loss is: ``kl`` (nats a token), ``cosine`` (1 - mean cosine) or ``weights``, the proxy
            without a text.
        text: SHA-256 of the token ids of the text, empty without one.
        matrices: by name.
    """

    measure: str
    text: str
    matrices: Mapping[str, Sensitivity]

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        entries = [
            {
                "name": name,
                "rows": entry.rows,
                "inputs": entry.inputs,
                "points": entry.points,
                "errors": {form.label: error for form, error in entry.errors.items()},
            }
            for name, entry in self.matrices.items()
        ]
        head = {"format": FILE_FORMAT, "format_version": FILE_VERSION}
        data = {**head, "measure": self.measure, "text": self.text, "matrices": entries}
        new = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            new.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    @staticmethod
    def read(path: Path) -> Table:
        """Reads a file and checks every field.

        Raises:
            InputError: E101 when it cannot be read, E102 when it is no table of a known version.
        """
        try:
            data = json.loads(_text(path))
            if data["format"] != FILE_FORMAT or data["format_version"] != FILE_VERSION:
                raise ValueError(f"format {data['format']!r}, version {data['format_version']!r}")
            matrices = {str(entry["name"]): _sensitivity(entry) for entry in data["matrices"]}
            if data["measure"] not in MEASURES:
                raise ValueError(f"measure {data['measure']!r}")
            return Table(data["measure"], str(data["text"]), matrices)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            raise InputError("E102", f"{path}: this is no sensitivity table ({fault}).", _HINT) from fault
        except BcqError as fault:
            raise InputError(
                fault.code if fault.code == "E101" else "E102", f"{path}: {fault.message}", _HINT
            ) from fault


def monotone(points: Mapping[float, float]) -> tuple[tuple[float, float], ...]:
    """Measured losses by error as rising pairs: none is below that of a smaller error, none is zero."""
    found: list[tuple[float, float]] = []
    for error in sorted(points):
        least = found[-1][1] if found else _SMALLEST
        if error > _SMALLEST:
            found.append((error, max(points[error], least)))
    return tuple(found)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as fault:
        raise InputError("E101", f"{fault.strerror}.") from fault
    if len(raw) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    return raw.decode("utf-8")


def _sensitivity(entry: Mapping[str, Any]) -> Sensitivity:
    points = tuple((_number(error), _number(loss)) for error, loss in entry["points"])
    if not points or any(after[0] <= before[0] for before, after in pairwise(points)):
        raise ValueError(f"points of {entry['name']!r}")
    errors = {parse_label(label): _number(error, 0.0) for label, error in entry["errors"].items()}
    rows, inputs = entry["rows"], entry["inputs"]
    if type(rows) is not int or type(inputs) is not int:
        raise ValueError(f"sizes of {entry['name']!r}")
    return Sensitivity(rows, inputs, points, errors)


def _number(value: object, least: float = _SMALLEST) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise ValueError(f"got {value!r}, expected a number of at least {least:g}")
    return float(value)
