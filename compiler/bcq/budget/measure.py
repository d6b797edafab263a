# SPDX-License-Identifier: Apache-2.0
"""Measures sensitivities: each matrix alone is quantized, and the loss of the model's outputs taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bcq.bcq import Float32
from bcq.budget.formats import formats
from bcq.budget.sensitivity import Sensitivity, Table, monotone
from bcq.budget.subjects import Subject
from bcq.budget.weight_errors import weight_errors
from bcq.progress import SILENT, Progress
from bcq.solver import relative_error, solve

if TYPE_CHECKING:
    import torch

    from bcq.budget.probe import Probe

# Errors at which the loss is measured: those of one, two and three planes, solved in the quickest way. They
# are where the loss is not yet in proportion to the error; docs/decisions/0013-budgets.md.
PROBED_BITS = (1, 2, 3)


def measure(
    folder: Path,
    subjects: Sequence[Subject],
    text: Path,
    method: str = "multistart",
    progress: Progress = SILENT,
) -> Table:
    """The table of a model folder.

    Args:
        folder: model folder; the whole model is loaded as float32.
        subjects: its matrices; those that the user has decided are left out.
        text: a file or folder as for calibration.
        method: the solver whose errors are sampled.
        progress: told once a matrix.

    Raises:
        BcqError: as :class:`bcq.budget.probe.Probe`; E106 for a matrix that cannot be solved.
    """
    from bcq.budget.probe import Probe

    probe = Probe(folder, text)
    free = [subject for subject in subjects if subject.fixed is None]
    table: dict[str, Sensitivity] = {}
    progress.start("sensitivity", len(free))
    for subject in free:
        dense = subject.read()
        points = _points(probe, probe.parameters[subject.name], subject, dense)
        errors = weight_errors(dense, formats(subject.inputs), method, subject.name)
        table[subject.name] = Sensitivity(subject.rows, subject.inputs, monotone(points), errors)
        progress.step(subject.name, " ".join(f"{loss:.1e}" for loss in points.values()))
    progress.done()
    return Table(probe.measure, probe.digest, table)


def _points(probe: Probe, parameter: torch.Tensor, subject: Subject, dense: Float32) -> dict[float, float]:
    """Loss of the outputs by the matrix's relative error; the parameter is as before in the end."""
    import torch

    original, points = parameter.clone(), {}
    for bits in PROBED_BITS:
        solved = solve(dense, bits, subject.inputs, "alternating", name=subject.name)
        value = solved.dequantize().T if subject.transposed else solved.dequantize()
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        points[relative_error(dense, solved)] = probe.loss()
    parameter.copy_(original)
    return points
