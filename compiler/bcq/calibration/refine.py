# SPDX-License-Identifier: Apache-2.0
"""Trains the factors of one block's packed matrices until its output is nearest to that of the dense block.

The solver makes the error of each matrix small by itself, for inputs that are off already. Here all factors
of a block answer together for what the block hands on, and make up for what the blocks before it did. Codes
stay. Block by block as Li et al. 2021 (BRECQ, arXiv 2102.05426), with scaling factors as the only variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bcq.nn.packed import PARTS, PackedMatrix
from bcq.packing import PackedWeight

RATE = 5e-3  # of the size of alpha_1 in each group, falling to zero: alphas differ by orders of magnitude
BETAS = (0.9, 0.99)
_LEAST = 1e-8  # alphas smaller than this move as if they had this size
Layers = Mapping[str, "tuple[nn.Module, PackedWeight]"]


@dataclass(frozen=True)
class Lesson:
    """What a block is to learn.

    Attributes:
        batches: how many batches of hidden states there are.
        output: what the block makes of a batch, differentiable, ``[tokens, hidden]``.
        target: what the dense block makes of it, where the model before it is dense, too.
    """

    batches: int
    output: Callable[[int], torch.Tensor]
    target: Callable[[int], torch.Tensor]

    def loss(self, batch: int) -> torch.Tensor:
        """The mean over tokens of the squared error relative to the token's squared length."""
        output, target = self.output(batch).flatten(0, -2), self.target(batch).flatten(0, -2)
        lengths = target.square().sum(-1).clamp_min(torch.finfo(target.dtype).tiny)
        return ((output - target).square().sum(-1) / lengths).mean()


@dataclass(frozen=True)
class Refined:
    """Matrices with new factors, and the loss without and with them, mean over all batches."""

    weights: Mapping[str, PackedWeight]
    before: float
    after: float


def refine(layers: Layers, lesson: Lesson, passes: int, seed: int = 0) -> Refined:
    """Trains the factors of some layers together; the same bytes on every run with one torch thread.

    Args:
        layers: by name a Linear or Conv1D inside the block, and its solved matrix.
        lesson: runs the block, which holds these modules.
        passes: over all batches, each in an order of its own.
        seed: of these orders.

    Returns:
        The matrices with trained factors, or as they were where training did not lower the loss.
    """
    matrices = {name: PackedMatrix.of(weight) for name, (_, weight) in layers.items()}
    with _in_place(layers, matrices):
        before = _mean_loss(lesson)
        _train(list(matrices.values()), lesson, passes, seed)
        after = _mean_loss(lesson)
    if not after < before:  # nor when it is no number
        return Refined({name: weight for name, (_, weight) in layers.items()}, before, before)
    return Refined({name: _with(layers[name][1], matrix) for name, matrix in matrices.items()}, before, after)


def _train(matrices: list[PackedMatrix], lesson: Lesson, passes: int, seed: int) -> None:
    steps, updates = [_Steps(matrix) for matrix in matrices], passes * lesson.batches
    moved = [change for step in steps for change in step.changes.values()]
    optimizer = torch.optim.Adam(moved, lr=RATE, betas=BETAS)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / updates)
    seeded = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        for batch in torch.randperm(lesson.batches, generator=seeded).tolist():
            lesson.loss(batch).backward()
            for step in steps:
                step.gradients()
            optimizer.step()
            rate.step()
            for step in steps:
                step.apply()


class _Steps:
    """The factors of one matrix, changed in units of each group's alpha_1.

    Attributes:
        changes: by part what the optimizer changes, zeros at the beginning.
    """

    def __init__(self, matrix: PackedMatrix) -> None:
        first = matrix.alpha_1.detach().abs().clamp_min(_LEAST)
        self._units = {"alpha_1": first, "alpha_rest": first[:, :, None].clone(), "offset": first}
        self._factors = {part: getattr(matrix, part) for part in PARTS if getattr(matrix, part).numel()}
        self._begin = {part: factor.detach().clone() for part, factor in self._factors.items()}
        self.changes = {part: torch.zeros_like(factor) for part, factor in self._begin.items()}
        for factor in self._factors.values():
            factor.requires_grad_(True)

    def gradients(self) -> None:
        """Moves the gradients of the factors to the changes."""
        for part, change in self.changes.items():
            change.grad = self._factors[part].grad * self._units[part]
            self._factors[part].grad = None

    @torch.no_grad()
    def apply(self) -> None:
        """Moves the changes to the factors."""
        for part, change in self.changes.items():
            self._factors[part].copy_(self._begin[part] + change * self._units[part])


@torch.no_grad()
def _mean_loss(lesson: Lesson) -> float:
    return sum(float(lesson.loss(batch)) for batch in range(lesson.batches)) / lesson.batches


@contextmanager
def _in_place(layers: Layers, matrices: Mapping[str, PackedMatrix]) -> Iterator[None]:
    """Layers multiply by these matrices inside the block."""
    modules = {name: module for name, (module, _) in layers.items()}
    try:
        for name, module in modules.items():
            module.forward = partial(_affine, module, matrices[name])
        yield
    finally:
        for module in modules.values():
            module.__dict__.pop("forward", None)


def _affine(layer: Any, matrix: PackedMatrix, x: torch.Tensor) -> torch.Tensor:
    y = matrix.product(x)
    return y if layer.bias is None else y + layer.bias


def _with(weight: PackedWeight, matrix: PackedMatrix) -> PackedWeight:
    """The same codes with the factors that a module has, as a file holds them."""
    factors = {part: getattr(matrix, part).detach().numpy().astype(np.float16) for part in PARTS}
    return replace(weight, **factors)
