# SPDX-License-Identifier: Apache-2.0
"""Sensitivities without a text: the relative weight error, weighted by size and by what a matrix is for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bcq.budget.formats import Format, formats
from bcq.budget.sensitivity import Sensitivity, Table
from bcq.budget.subjects import HEAD, LINEAR, Subject
from bcq.budget.weight_errors import weight_errors
from bcq.progress import SILENT, Progress

MEASURE = "weights"
# All linear layers together count 1, each by the root of its size; measured: docs/decisions/0013-budgets.md.
HEAD_WEIGHT = 1.5
EMBEDDING_WEIGHT = 0.05


def proxy(subjects: Sequence[Subject], method: str = "multistart", progress: Progress = SILENT) -> Table:
    """A table of sampled weight errors, whose losses are these times what the matrix weighs among all.

    Args:
        subjects: matrices; those that the user has decided are left out.
        method: the solver whose errors are sampled.
        progress: told once a matrix.

    Raises:
        InputError: E106 for a matrix that cannot be solved.
    """
    free = [subject for subject in subjects if subject.fixed is None]
    errors = {}
    progress.start("weight errors", len(free))
    for subject in free:
        errors[subject.name] = weight_errors(subject.read(), formats(subject.inputs), method, subject.name)
        progress.step(subject.name)
    progress.done()
    return weighted(free, errors)


def weighted(subjects: Sequence[Subject], errors: Mapping[str, Mapping[Format, float]]) -> Table:
    """The table of known weight errors, by name of the matrix."""
    roots = sum(math.sqrt(subject.weights) for subject in subjects if subject.kind == LINEAR)

    def weight(subject: Subject) -> float:
        if subject.kind == LINEAR:
            return math.sqrt(subject.weights) / roots
        return HEAD_WEIGHT if subject.kind == HEAD else EMBEDDING_WEIGHT

    table = {
        subject.name: Sensitivity(
            subject.rows, subject.inputs, ((1.0, weight(subject)),), errors[subject.name]
        )
        for subject in subjects
    }
    return Table(MEASURE, "", table)
