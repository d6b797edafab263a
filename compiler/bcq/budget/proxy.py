# SPDX-License-Identifier: Apache-2.0
"""Sensitivities without a text: the relative weight error, weighted by what the matrix is for."""

from __future__ import annotations

from collections.abc import Sequence

from bcq.budget.formats import formats
from bcq.budget.sensitivity import Sensitivity, Table
from bcq.budget.subjects import EMBEDDING, HEAD, LINEAR, Subject
from bcq.budget.weight_errors import weight_errors
from bcq.progress import SILENT, Progress

MEASURE = "weights"
KIND_WEIGHTS = {LINEAR: 1.0, EMBEDDING: 1.0, HEAD: 1.0}


def proxy(subjects: Sequence[Subject], method: str = "multistart", progress: Progress = SILENT) -> Table:
    """A table of sampled weight errors, whose losses are these times a weight of the matrix's kind.

    Args:
        subjects: matrices; those that the user has decided are left out.
        method: the solver whose errors are sampled.
        progress: told once a matrix.

    Raises:
        InputError: E106 for a matrix that cannot be solved.
    """
    free = [subject for subject in subjects if subject.fixed is None]
    table = {}
    progress.start("weight errors", len(free))
    for subject in free:
        errors = weight_errors(subject.read(), formats(subject.inputs), method, subject.name)
        points = ((1.0, KIND_WEIGHTS[subject.kind]),)
        table[subject.name] = Sensitivity(subject.rows, subject.inputs, points, errors)
        progress.step(subject.name)
    progress.done()
    return Table(MEASURE, "", table)
