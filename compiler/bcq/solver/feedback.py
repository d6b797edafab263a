# SPDX-License-Identifier: Apache-2.0
"""Error feedback: inputs take their codes one after the other, each making up for the errors before it.

With H = U^T U the error of a row is |U e|^2, and its last term depends on the last input alone, the one
before on the last two, and so on: walking backwards, each weight is rounded to the level that is nearest
once all errors so far are counted in. Source: Babai's nearest plane; the same codes as GPTQ (Frantar et al.
2022, arXiv 2210.17323) in the same order of inputs, without an inverse.

The nearest level now may be the wrong one for the inputs to come, so inside a block of inputs every row keeps
its best few choices and tries for each the levels on both sides (a beam search); the best goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bcq.solver.codebook import Codebook
from bcq.solver.groups import Float32

BLOCK = 32  # inputs between two matrix products, after which the best choice goes on
BEAM = 8  # choices a row


class Tried(Protocol):
    """Levels that an input may take next, for each choice of a row so far; P precisions read each level."""

    @property
    def costs(self) -> Float32:
        """float32 ``[A, C, N]``, what each of A levels adds to each of C choices."""

    def levels(self, kept: NDArray[np.intp]) -> Float32:
        """Levels ``[P, beam, N]`` by their flat indexes ``[beam, N]`` among the costs."""


class Book(Protocol):
    """The levels of one group of many rows."""

    def tried(self, weight: Float32, pull: Float32, diagonal: np.float32) -> Tried:
        """Levels for weights ``[N]``; ``pull``: ``[P, C, N]``, what other errors add to their terms."""


@dataclass(frozen=True)
class _Step:
    """One input of a block: the levels of each row's choices, and from which choice before each came."""

    levels: Float32  # [P, beam, N]
    parents: NDArray[np.intp]  # [beam, N]


def feed_back(
    target: Float32,
    factor: Float32,
    order: NDArray[np.int64],
    books: list[Codebook],
    group_size: int,
    beam: int = BEAM,
) -> Float32:
    """The levels that weights ``[K, N]`` take.

    Args:
        target: float32 ``[K, N]``.
        factor: upper triangular U of H with its inputs in ``order``.
        order: the inputs, first those that take their codes last.
        books: one codebook a group.
        group_size: g.
        beam: choices that a row keeps; 1 is plain error feedback.
    """
    return feed_back_all(target, factor, order, books, group_size, 1, beam)[:, 0]


def feed_back_all(
    target: Float32,
    factor: Float32,
    order: NDArray[np.int64],
    books: Sequence[Book],
    group_size: int,
    precisions: int,
    beam: int = BEAM,
) -> Float32:
    """The same for codes that P precisions read: float32 ``[K, P, N]``, each with errors of its own."""
    inputs, rows = target.shape
    dense = np.empty((inputs, precisions, rows), np.float32)
    errors = np.empty_like(dense)  # in `order`
    for end in range(inputs, 0, -BLOCK):
        begin = max(end - BLOCK, 0)
        pull = factor[begin:end, end:] @ errors.reshape(inputs, -1)[end:]
        columns = order[begin:end]
        weights = target[columns]
        of_column = [books[column // group_size] for column in columns]
        part, pulls = factor[begin:end, begin:end], pull.reshape(-1, precisions, 1, rows)
        dense[columns] = _block(weights, part, pulls, of_column, beam)
        errors[begin:end] = dense[columns] - weights[:, None]
    return dense


def _block(weights: Float32, factor: Float32, pull: Float32, books: Sequence[Book], beam: int) -> Float32:
    """Levels ``[width, P, N]`` of one block.

    Args:
        weights: float32 ``[width, N]``.
        factor: U of these inputs.
        pull: ``[width, P, choices, N]``, what the errors of inputs outside add to each term.
        books: one an input.
        beam: choices that a row keeps.
    """
    precisions, rows = pull.shape[1], weights.shape[1]
    cost = np.zeros((1, rows), np.float32)
    steps: list[_Step] = []
    for j in range(len(weights) - 1, -1, -1):
        tried = books[j].tried(weights[j], pull[j], factor[j, j])
        costs = (cost + tried.costs).reshape(-1, rows)
        kept = _smallest(costs, beam)
        cost = costs.ravel().take(kept)
        choices = pull.shape[2] * rows
        step = _Step(tried.levels(kept), kept % choices)
        steps.append(step)
        pull = pull[:j].reshape(j, precisions, choices).take(step.parents, axis=2)
        pull += factor[:j, j, None, None, None] * (step.levels - weights[j])
    return _traced(steps, cost)


def _smallest(costs: Float32, beam: int) -> NDArray[np.intp]:
    """Flat indexes ``[at most beam, N]`` of the smallest of each column."""
    count, rows = costs.shape
    if count <= beam:
        return np.arange(costs.size).reshape(count, rows)
    chosen: NDArray[np.intp] = np.argpartition(costs, beam - 1, axis=0)[:beam]
    chosen *= rows
    chosen += np.arange(rows)
    return chosen


def _traced(steps: list[_Step], cost: Float32) -> Float32:
    """The levels ``[width, P, N]`` of each row's best choice, the last step first."""
    rows = cost.shape[1]
    choice = cost.argmin(axis=0) * rows + np.arange(rows)
    levels = np.empty((len(steps), len(steps[0].levels), rows), np.float32)
    for j, step in enumerate(reversed(steps)):
        levels[j] = step.levels.reshape(len(step.levels), -1).take(choice, axis=1)
        choice = step.parents.ravel().take(choice)
    return levels
