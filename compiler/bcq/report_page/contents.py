# SPDX-License-Identifier: Apache-2.0
"""What a page says about one export: its report file, its sizes, and times and perplexity if measured."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bcq.errors import InputError
from bcq.files.manifest import NAME as MANIFEST
from bcq.report import REPORT_FILE, Row, Summary, read_report, summarize

MODEL_FILES = ("model.onnx*", "*.safetensors")  # of an export, of a quantized base


@dataclass(frozen=True)
class Contents:
    """One export.

    Attributes:
        name: as the page calls it.
        rows: every matrix.
        options: how it was quantized.
        model_bytes: graph and weights.
        versions: of what made it; empty where there is no manifest yet.
        perplexity: on a text, None where it was not measured.
        operators: microseconds of a generated token by operator type; empty where not measured.
        times: microseconds of a generated token by matrix.
        threads: that the times were measured on.
    """

    name: str
    rows: list[Row]
    options: dict[str, Any]
    model_bytes: int
    versions: dict[str, str] = field(default_factory=dict)
    perplexity: float | None = None
    operators: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    threads: int = 0

    @property
    def summary(self) -> Summary:
        """Counts, bits and sizes."""
        return summarize(self.rows, self.model_bytes, 0.0)

    @property
    def error(self) -> float | None:
        """Root mean square error of all packed weights over the root mean square of them, None if unknown."""
        known = [row for row in self.rows if row.relative_error is not None and not row.tied]
        weights = sum(row.rows * row.inputs for row in known)
        if not weights:
            return None
        return math.sqrt(sum((row.relative_error or 0.0) * row.rows * row.inputs for row in known) / weights)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        summary = self.summary.to_dict()
        del summary["peak_ram"], summary["seconds"]
        found = asdict(self)
        found["matrices"] = found.pop("rows")
        return {**found, **summary, "relative_rms_error": self.error}


def rms(row: Row) -> float | None:
    """The relative error of a matrix as a root mean square, None where it is not known."""
    return None if row.relative_error is None else math.sqrt(row.relative_error)


def read_contents(folder: Path, name: str = "") -> Contents:
    """What the files of an export say.

    Raises:
        InputError: E101 for a missing folder, E102 for one without a report that can be read.
    """
    if not folder.is_dir():
        raise InputError("E101", f"the folder {folder} does not exist.", "Give a folder of `bcq export`.")
    rows = read_report(folder)
    if rows is None:
        raise InputError(
            "E102", f"{folder} has no {REPORT_FILE} that can be read.", "Give a folder of `bcq export`."
        )
    return Contents(
        name=name or folder.resolve().name,
        rows=rows,
        options=_section(folder / REPORT_FILE, "options"),
        model_bytes=sum(path.stat().st_size for pattern in MODEL_FILES for path in folder.glob(pattern)),
        versions={key: str(value) for key, value in _section(folder / MANIFEST, "versions").items()},
    )


def _section(file: Path, key: str) -> dict[str, Any]:
    """An object in a JSON file; empty where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
