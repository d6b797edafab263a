# SPDX-License-Identifier: Apache-2.0
"""Options of calibration, shared by the verbs that quantize."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.report import LISTED, REPORT_FILE

if TYPE_CHECKING:
    from bcq.calibration import CalibrationOptions

_NAMES = ("calibrate", "calibration_windows", "calibration_tokens", "refine", "workers", "scheduler")
CALIBRATED = "calibrated"  # what the report of a base calls the method
_PLACES = ("--workers", "--scheduler")  # where the work is done; the files do not depend on it


def add_calibration_options(verb: argparse.ArgumentParser) -> None:
    """The options of calibration; absent ones are not set."""
    group = verb.add_argument_group("calibration (solves matrices for the inputs that they will see)")

    def add(flag: str, **settings: Any) -> None:
        group.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add(
        "--calibrate",
        type=Path,
        metavar="TEXT",
        help="text like what the model will see: .txt or .jsonl (also .xz, .gz, .bz2), or a folder of these",
    )
    add(
        "--calibration-windows",
        type=int,
        metavar="N",
        help="windows of text (default: enough for the widest matrix)",
    )
    add(
        "--calibration-tokens",
        type=int,
        metavar="L",
        help="tokens a window (default: the model's context, at most 512)",
    )
    add(
        "--refine",
        type=int,
        metavar="PASSES",
        help="then train the factors block by block, this often over the text (4 is plenty; default 0)",
    )
    add("--workers", type=int, metavar="N", help="processes that solve matrices (default: cores, at most 4)")
    add("--scheduler", metavar="ADDRESS", help="solve on a Dask cluster, such as tcp://host:8786")


def calibration_options(arguments: argparse.Namespace) -> CalibrationOptions | None:
    """What the user asked for; None without ``--calibrate``.

    Raises:
        UsageError: E202 when a value is out of range, or the other options come without a text.
    """
    from bcq.calibration import CalibrationOptions
    from bcq.errors import UsageError

    given = {name: getattr(arguments, name) for name in _NAMES if hasattr(arguments, name)}
    if given and "calibrate" not in given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise UsageError("E202", f"{flag} needs --calibrate TEXT.", "Without a text nothing is calibrated.")
    return CalibrationOptions(**given) if given else None


def without_places(words: Sequence[str]) -> list[str]:
    """The words of a command for the manifest: the text by its last name, no places of work."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        flag, separator, value = word.partition("=")
        if len(flag) > len("--") and any(place.startswith(flag) for place in _PLACES):
            if not separator:
                next(left, None)
        elif flag == "--calibrate":
            kept += [flag, Path(value if separator else next(left, "")).resolve().name]
        else:
            kept.append(word)
    return kept


def calibration_summary(output: Path) -> dict[str, Any]:
    """How many packed matrices were calibrated, and which were not, from the report of a base."""
    document = json.loads((output / REPORT_FILE).read_text(encoding="utf-8"))
    rows = [row for row in document["matrices"] if row["bits"] is not None]
    calibrated = [row for row in rows if row.get("method") == CALIBRATED]
    return {
        "calibrated": len(calibrated),
        "errors": {row["name"]: row["calibrated_error"] for row in calibrated},
        "data_free": [row["name"] for row in rows if row.get("method") != CALIBRATED],
    }


def calibration_text(summary: dict[str, Any]) -> str:
    """The same for people."""
    left = summary["data_free"]
    some = f"; from their weights alone: {', '.join(left[:LISTED])}" if left else ""
    more = f" and {len(left) - LISTED} more" if len(left) > LISTED else ""
    return f"calibrated  {summary['calibrated']} matrices{some}{more}"
