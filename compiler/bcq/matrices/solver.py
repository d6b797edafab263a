# SPDX-License-Identifier: Apache-2.0
"""Packs one matrix after the other, or takes it from what is finished; remembers how each went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bcq import packing
from bcq.bcq import Float32
from bcq.errors import ResourceError
from bcq.matrices.resume import Finished, key_of
from bcq.precisions import matrix as nested
from bcq.solver import calibrated_error, relative_error, solve

if TYPE_CHECKING:
    from pathlib import Path

    from bcq.calibration.task import Solved
    from bcq.files.base import BaseMatrix
    from bcq.files.checkpoint import Checkpoint
    from bcq.matrices.plan import QuantizeOptions
    from bcq.progress import Progress

CALIBRATED = "calibrated"


@dataclass(frozen=True)
class Outcome:
    """How one matrix went.

    Attributes:
        key: its name among what is finished.
        method: ``calibrated``, or one of ``bcq.matrices.plan.METHODS``.
        relative_error: sum of squared errors over the sum of squared weights.
        calibrated_error: the same under the second moments of its inputs, None without calibration.
        also: the same of further precisions, by their bits, the highest first.
    """

    key: str
    method: str
    relative_error: float
    calibrated_error: float | None = None
    also: Mapping[int, Outcome] = field(default_factory=dict)


class MatrixSolver:
    """Gives the packed form of each matrix; tells its progress once a matrix.

    Args:
        checkpoint: the dense model.
        options: method and seed; bits, groups and offset are those of each matrix.
        finished: where packed matrices wait, so that none stays in memory.
        progress: told when a matrix is there.
    """

    def __init__(
        self, checkpoint: Checkpoint, options: QuantizeOptions, finished: Finished, progress: Progress
    ) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._finished = finished
        self._progress = progress
        self._outcomes: dict[str, Outcome] = {}

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """What is packed so far, by checkpoint name."""
        return self._outcomes

    @property
    def seed(self) -> int:
        """Seed of random choices."""
        return self._options.seed

    def __call__(self, matrix: BaseMatrix) -> packing.PackedWeight:
        """The packed matrix; solved from its weights alone unless it is there already."""
        if matrix.stored in self._outcomes:
            return self.weight(matrix.stored)
        if matrix.also:
            return self._nested(matrix)
        dense, options = self._dense(matrix), self._options
        how = (matrix.bits, matrix.group_size, options.method, matrix.offset, options.seed)
        key = key_of(dense, *how)
        found = self._finished.find(key)
        if found is None:
            solved = solve(dense, *how, name=matrix.stored)
            error = relative_error(dense, solved)
            found = self._finished.keep(key, packing.pack(solved), error), error
        self._told(matrix, Outcome(key, options.method, found[1]))
        return found[0]

    def _nested(self, matrix: BaseMatrix) -> packing.PackedWeight:
        solved = nested.precisions(self._dense(matrix), matrix, self.seed, self._finished)
        (key, weight, error), *others = solved.values()
        outcomes = [Outcome(key, nested.METHOD, error) for key, _, error in others]
        also = dict(zip(list(solved)[1:], outcomes, strict=True))
        self._told(matrix, Outcome(key, nested.METHOD, error, also=also))
        return weight

    def further(self, matrix: BaseMatrix) -> dict[int, packing.PackedWeight]:
        """The further precisions of a packed matrix, by their bits as the matrix lists them."""
        outcomes = self._outcomes[matrix.stored].also
        return {bits: self._kept(matrix.stored, outcomes[bits].key) for bits, _ in matrix.also}

    def weight(self, stored: str) -> packing.PackedWeight:
        """A packed matrix, mapped anew: what was read of it before does not stay in memory.

        Raises:
            ResourceError: E601 when it is no longer there.
        """
        return self._kept(stored, self._outcomes[stored].key)

    def _kept(self, stored: str, key: str) -> packing.PackedWeight:
        found = self._finished.find(key)
        if found is None:
            raise ResourceError(
                "E601", f"the finished matrix {stored} was removed or damaged during the run."
            )
        return found[0]

    def key(self, matrix: BaseMatrix, inputs: str) -> str:
        """The name of a calibrated matrix; ``inputs`` names everything that its inputs depend on."""
        method = f"{CALIBRATED} {json.dumps(matrix.also)}" if matrix.also else CALIBRATED
        how = (matrix.bits, matrix.group_size, method, matrix.offset, self.seed)
        return key_of(self._dense(matrix), *how, inputs=inputs)

    def recall(self, matrix: BaseMatrix, key: str) -> bool:
        """Whether a stopped run has left this calibrated matrix."""
        if matrix.stored not in self._outcomes:
            keys = _keys(matrix, key)
            found = [self._finished.errors(each) for each in keys.values()]
            outcomes = [
                Outcome(each, CALIBRATED, *errors)
                for each, errors in zip(keys.values(), found, strict=True)
                if errors is not None
            ]
            if len(outcomes) < len(keys):
                return False
            also = dict(zip(list(keys)[1:], outcomes[1:], strict=True))
            self._told(matrix, replace(outcomes[0], also=also))
        return True

    def recall_all(self, matrices: Sequence[tuple[BaseMatrix, str]]) -> bool:
        """Whether a stopped run has left all of these calibrated matrices; else none is taken."""
        if any(self._finished.errors(key) is None for _, key in matrices):
            return False
        return all(self.recall(matrix, key) for matrix, key in matrices)

    def keep(self, matrix: BaseMatrix, key: str, solved: Solved) -> None:
        """Takes a calibrated matrix at all of its precisions."""
        outcomes = {}
        for bits, each in _keys(matrix, key).items():
            one = solved if bits == matrix.bits else solved.also[bits]
            self._finished.keep(each, one.weight, one.relative_error, one.calibrated_error)
            outcomes[bits] = Outcome(each, CALIBRATED, one.relative_error, one.calibrated_error)
        self._told(matrix, replace(outcomes.pop(matrix.bits), also=outcomes))

    def refine(self, matrix: BaseMatrix, key: str, weight: packing.PackedWeight, moments: Path) -> None:
        """Takes new factors of a calibrated matrix.

        Args:
            matrix: it.
            key: its new name.
            weight: its codes with the new factors.
            moments: file with the second moments of its inputs.
        """
        dense, plain = self._dense(matrix), packing.unpack(weight)
        second = np.load(moments, mmap_mode="r", allow_pickle=False)
        errors = relative_error(dense, plain), calibrated_error(dense, plain, second)
        self._finished.keep(key, weight, *errors)
        self._outcomes[matrix.stored] = Outcome(key, CALIBRATED, *errors)

    def _told(self, matrix: BaseMatrix, outcome: Outcome) -> None:
        self._outcomes[matrix.stored] = outcome
        kind = "relative" if outcome.calibrated_error is None else "calibrated"
        others = "".join(f", {bits} bits {_error(other):.4f}" for bits, other in outcome.also.items())
        self._progress.step(matrix.name, f"{matrix.bits} bits, {kind} error {_error(outcome):.4f}{others}")

    def _dense(self, matrix: BaseMatrix) -> Float32:
        dense = self._checkpoint.read(matrix.stored)
        return dense.T if matrix.transposed else dense


def _keys(matrix: BaseMatrix, key: str) -> dict[int, str]:
    """Names of a calibrated matrix at each of its precisions, the highest first: that one has the key."""
    return {matrix.bits: key, **{bits: f"{key}-{bits}bit" for bits, _ in reversed(matrix.also)}}


def _error(outcome: Outcome) -> float:
    """The calibrated error where there is one."""
    return outcome.relative_error if outcome.calibrated_error is None else outcome.calibrated_error
