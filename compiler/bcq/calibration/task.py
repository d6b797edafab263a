# SPDX-License-Identifier: Apache-2.0
"""One matrix to solve, as a message to another process: what it is, and how it comes back."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from bcq import packing
from bcq.bcq import BcqWeight, Float32
from bcq.errors import BcqError, is_out_of_memory, out_of_memory
from bcq.files.checkpoint import Checkpoint
from bcq.files.safetensors_read import StoredTensor
from bcq.packing import PackedWeight


@dataclass(frozen=True)
class SolveTask:
    """What a worker needs.

    Attributes:
        name: checkpoint name of the matrix.
        weights: the matrix as the checkpoint holds it, or where it lies.
        transposed: whether that is ``[K, N]``.
        moments: mean of x x^T over its inputs x, float32 ``[K, K]``, or the ``.npy`` file that holds it.
        bits: q.
        group_size: g.
        offset: whether groups have offsets.
        seed: of random choices.
        also: planes and group size of each further precision that reads the same codes, ascending.
    """

    name: str
    weights: StoredTensor | Float32
    transposed: bool
    moments: Path | Float32
    bits: int
    group_size: int
    offset: bool
    seed: int
    also: tuple[tuple[int, int], ...] = ()

    def with_values(self) -> SolveTask:
        """The same for a machine that has none of the files."""
        return replace(self, weights=_stored(self.weights), moments=_matrix(self.moments))


@dataclass(frozen=True)
class Solved:
    """What comes back.

    Attributes:
        name: checkpoint name of the matrix.
        weight: the matrix, packed.
        relative_error: sum of squared errors over the sum of squared weights.
        calibrated_error: tr(E H E^T) / tr(W H W^T) for second moments H and errors E against the matrix W.
        also: the same at further precisions, by their bits.
    """

    name: str
    weight: PackedWeight
    relative_error: float
    calibrated_error: float
    also: Mapping[int, Solved] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What comes back instead when a matrix cannot be solved.

    Attributes:
        kind: class of the error.
        words: its code, message and hint.
        detail: where it happened.
    """

    kind: type[BcqError]
    words: tuple[str, str, str]
    detail: str

    def error(self) -> BcqError:
        """The error, with what it says about the worker as its cause."""
        error = self.kind(*self.words)
        error.__cause__ = RuntimeError(f"in the worker:\n{self.detail}")
        return error


class Workers(Protocol):
    """Something that solves matrices: this machine's processes, or a cluster."""

    def solve(self, tasks: list[SolveTask]) -> Iterator[Solved]:
        """Solves all, in whatever order they become ready.

        Raises:
            BcqError: for the first that fails, with its name.
        """


def attempt(task: SolveTask) -> Solved | Fault:
    """Solves one matrix, in a worker."""
    try:
        return solve_task(task)
    except BcqError as fault:
        words = (fault.code, fault.message, fault.hint)
        return Fault(type(fault), words, "".join(traceback.format_exception(fault)))


def solve_task(task: SolveTask) -> Solved:
    """Solves one matrix.

    Raises:
        BcqError: with the name of the matrix; E602 when memory runs out.
    """
    try:
        stored = _stored(task.weights)
        dense = np.ascontiguousarray(stored.T if task.transposed else stored)
        moments = _matrix(task.moments)
        return _solved(dense, moments, task)
    except BcqError:
        raise
    except Exception as fault:
        if is_out_of_memory(fault):
            raise out_of_memory(f"while {task.name} was solved") from fault
        raise BcqError(
            "E999",
            f"{task.name}: {type(fault).__name__}: {fault}.",
            "A bug: run again with --debug and report it.",
        ) from fault


def _solved(dense: Float32, moments: Float32, task: SolveTask) -> Solved:
    from bcq.precisions.calibrated import solve_nested_calibrated
    from bcq.solver import calibrated_error, relative_error, solve_calibrated

    def told(weight: BcqWeight, packed: PackedWeight, also: Mapping[int, Solved]) -> Solved:
        errors = relative_error(dense, weight), calibrated_error(dense, weight, moments)
        return Solved(task.name, packed, *errors, also)

    how = (task.offset, task.seed, task.name)
    if not task.also:
        alone = solve_calibrated(dense, moments, task.bits, task.group_size, *how)
        return told(alone, packing.pack(alone), {})
    sizes = dict(((task.bits, task.group_size), *task.also))
    nested = solve_nested_calibrated(dense, moments, sizes, *how)
    packed = nested.packed()
    also = {bits: told(nested.at(bits), packed[bits], {}) for bits, _ in task.also}
    return told(nested.at(task.bits), packed[task.bits], also)


def _stored(weights: StoredTensor | Float32) -> Float32:
    if isinstance(weights, StoredTensor):
        return Checkpoint(weights.file.parent, {}, {weights.name: weights}, {}).read(weights.name)
    return weights


def _matrix(values: Path | Float32) -> Float32:
    return np.load(values, mmap_mode="r", allow_pickle=False) if isinstance(values, Path) else values
