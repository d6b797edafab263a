# SPDX-License-Identifier: Apache-2.0
"""Options of quantization as a caller has written them by name, with or without a target for a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.errors import UsageError
from bcq.matrices.plan import QuantizeOptions
from bcq.progress import SILENT, Progress

if TYPE_CHECKING:
    from bcq.budget.choose import Budget

TARGETS = ("bpw", "size", "latency")
FILES = ("cost_table", "sensitivity_text", "sensitivity")
NAMES = (*(f"target_{kind}" for kind in TARGETS), *FILES)
_DECIDED = ("bits", "group_size", "offset", "also_bits")  # by a budget, where there is one


def options_of(
    source: str | Path,
    written: Mapping[str, Any],
    calibrate: str | Path | None = None,
    progress: Progress = SILENT,
    warn: Callable[[str], None] = lambda line: None,
) -> tuple[QuantizeOptions, Budget | None]:
    """The options, those that a target decides included, and the budget; None without a target.

    Args:
        source: model folder or ``.onnx`` file; read for a budget only.
        written: fields of `bcq.matrices.plan.QuantizeOptions` and of `NAMES`, as the caller gave them.
        calibrate: text of a calibration, on which sensitivities are measured where no other is given.
        progress: told once a matrix that is measured.
        warn: told what the user should know.

    Raises:
        UsageError: E202 when a value is out of range, E203 when options do not go together, E204 when a
            target cannot be reached.
        BcqError: for a budget, what reading the model raises.
    """
    options = QuantizeOptions(**{name: value for name, value in written.items() if name not in NAMES})
    kinds = [kind for kind in TARGETS if f"target_{kind}" in written]
    if not kinds:
        lonely = next((name for name in FILES if name in written), None)
        if lonely:
            raise UsageError(
                "E203", f"{_flag(lonely)} needs a target.", "Add --target-bpw, -size or -latency."
            )
        return options, None
    if len(kinds) > 1:
        raise UsageError("E203", f"--target-{kinds[0]} does not go with --target-{kinds[1]}.", "Choose one.")
    clash = next((name for name in _DECIDED if name in written), None)
    if clash:
        raise UsageError(
            "E203",
            f"{_flag(clash)} does not go with --target-{kinds[0]}, which chooses it.",
            "Leave it out; --set decides single matrices.",
        )
    from bcq.budget.request import Request, fulfil
    from bcq.budget.target import parse_target

    target = parse_target(kinds[0], str(written[f"target_{kinds[0]}"]))
    text = written.get("sensitivity_text", calibrate)
    files = (written.get("cost_table"), text, written.get("sensitivity"))
    request = Request(target, *(None if file is None else Path(file) for file in files))
    budget = fulfil(source, options, request, progress, warn)
    return budget.options, budget


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
