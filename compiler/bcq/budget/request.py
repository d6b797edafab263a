# SPDX-License-Identifier: Apache-2.0
"""A budget as the user asks for it: files are read, sensitivities measured or reused, and the plan made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bcq.budget.choose import Budget, Cost, choose
from bcq.budget.sensitivity import Table
from bcq.budget.subjects import Model, read_model
from bcq.budget.target import LATENCY, Target
from bcq.errors import UsageError
from bcq.matrices.plan import QuantizeOptions
from bcq.progress import SILENT, Progress


@dataclass(frozen=True)
class Request:
    """What the user has written.

    Attributes:
        target: the limit.
        cost_table: file of `bcq bench --cost-table`, for a latency and only there.
        text: what to measure sensitivities on; None for the proxy without a text.
        sensitivity: file of sensitivities: read if it is there, else written; None for neither.

    Raises:
        UsageError: E203 for options that do not go together.
    """

    target: Target
    cost_table: Path | None = None
    text: Path | None = None
    sensitivity: Path | None = None

    @property
    def reused(self) -> bool:
        """Whether the file of sensitivities is there."""
        return self.sensitivity is not None and self.sensitivity.exists()

    def __post_init__(self) -> None:
        timed = self.target.kind == LATENCY
        if timed and self.cost_table is None:
            raise UsageError(
                "E203",
                "--target-latency needs the times of this machine, --cost-table FILE.",
                "Make it with 'bcq bench --cost-table FILE'.",
            )
        if self.cost_table is not None and not timed:
            raise UsageError("E203", f"--cost-table does not go with {self.target.flag}.", "Leave it out.")


def fulfil(
    source: str | Path,
    options: QuantizeOptions,
    request: Request,
    progress: Progress = SILENT,
    warn: Callable[[str], None] = lambda line: None,
) -> Budget:
    """Makes the plan.

    Args:
        source: model folder or ``.onnx`` file.
        options: solver, seed and exceptions by name.
        request: target and files.
        progress: told once a matrix that is measured.
        warn: told what the user should know, one line each.

    Raises:
        BcqError: what reading the files raises; E203 for a text with an ``.onnx`` file, E204 for a target
            that cannot be reached.
    """
    path = Path(source)
    if request.text is not None and path.is_file():
        raise UsageError(
            "E203",
            f"sensitivities are measured on a text for model folders only, {path} is a file.",
            "Leave the text out: errors of the weights are taken then.",
        )
    times, bits = None, None
    if request.cost_table is not None:
        times, bits = _times(request.cost_table, warn)
    model = read_model(path, options)
    if not model.subjects:
        raise UsageError("E204", f"{path} has no matrix that can be packed, a budget has nothing to decide.")
    if request.reused and request.text is not None:
        warn(f"{request.sensitivity} is reused; remove it to measure on '{request.text}'")
    table = _table(path, model, options, request, progress)
    return choose(model, options, request.target, table, times, bits)


def _times(file: Path, warn: Callable[[str], None]) -> tuple[Cost, frozenset[int]]:
    from bcq.bench.cost_table import CostTable
    from bcq.budget.latency import clock, foreign, measured_bits

    table = CostTable.read(file)
    difference = foreign(table)
    if difference:
        warn(f"{file} was measured elsewhere ({difference}): times on this machine will differ")
    return clock(table), measured_bits(table)


def _table(path: Path, model: Model, options: QuantizeOptions, request: Request, progress: Progress) -> Table:
    file = request.sensitivity
    if file is not None and request.reused:
        return Table.read(file)
    if request.text is not None:
        from bcq.budget.measure import measure

        table = measure(path, model.subjects, request.text, options.method, progress)
    else:
        from bcq.budget.proxy import proxy

        table = proxy(model.subjects, options.method, progress)
    if file is not None:
        table.write(file)
    return table
