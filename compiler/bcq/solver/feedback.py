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

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bcq.solver.codebook import Codebook
from bcq.solver.groups import Float32

BLOCK = 32  # inputs between two matrix products, after which the best choice goes on
BEAM = 8  # choices a row


@dataclass(frozen=True)
class _Step:
    """One input of a block: the levels of each row's choices, and from which choice before each came."""

    levels: Float32  # [beam, N]
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
    inputs, rows = target.shape
    dense = np.empty((inputs, rows), np.float32)
    errors = np.empty((inputs, rows), np.float32)  # in `order`
    for end in range(inputs, 0, -BLOCK):
        begin = max(end - BLOCK, 0)
        pull = factor[begin:end, end:] @ errors[end:]
        columns = order[begin:end]
        weights = target[columns]
        of_column = [books[column // group_size] for column in columns]
        dense[columns] = _block(weights, factor[begin:end, begin:end], pull, of_column, beam)
        errors[begin:end] = dense[columns] - weights
    return dense


def _block(weights: Float32, factor: Float32, pull: Float32, books: list[Codebook], beam: int) -> Float32:
    """Levels ``[width, N]`` of one block; ``pull``: what the errors of inputs outside add to each term."""
    rows = weights.shape[1]
    pull = pull[:, None]  # [width, choices, N]
    cost = np.zeros((1, rows), np.float32)
    steps: list[_Step] = []
    for j in range(len(weights) - 1, -1, -1):
        levels = books[j].around(weights[j] - pull[j] / factor[j, j])
        terms = np.square((levels - weights[j]) * factor[j, j] + pull[j])
        costs = (cost + terms).reshape(-1, rows)
        kept = _smallest(costs, beam)
        cost = costs.ravel().take(kept)
        choices = pull.shape[1] * rows
        step = _Step(levels.ravel().take(kept), kept % choices)
        steps.append(step)
        pull = pull[:j].reshape(j, choices).take(step.parents, axis=1)
        pull += factor[:j, j, None, None] * (step.levels - weights[j])
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
    """The levels of each row's best choice, the last step first."""
    rows = cost.shape[1]
    choice = cost.argmin(axis=0) * rows + np.arange(rows)
    levels = np.empty((len(steps), rows), np.float32)
    for j, step in enumerate(reversed(steps)):
        levels[j] = step.levels.ravel().take(choice)
        choice = step.parents.ravel().take(choice)
    return levels
