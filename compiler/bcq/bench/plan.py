# SPDX-License-Identifier: Apache-2.0
"""What is measured: problems, which contenders, how many rounds; and the plans that have a name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

Shape = tuple[int, int]  # (N, K)

GPT2_MEDIUM: tuple[Shape, ...] = ((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096))
OPT_1B: tuple[Shape, ...] = ((2048, 2048), (8192, 2048), (2048, 8192))
LLAMA_8B: tuple[Shape, ...] = ((4096, 4096), (14336, 4096), (4096, 14336))  # and 1024 x 4096
README: tuple[Shape, ...] = ((4096, 4096), (4096, 1024), (1024, 1024))
MAIN: Shape = (4096, 4096)

BITS = (2, 3, 4)
FULL_BITS = (1, 2, 3, 4)
COST_BITS = (1, 2, 3, 4)
ARITHMETICS = ("near-exact", "int8", "float32")
GROUP_SIZE = 128
ROUNDS = 9
QUICK_ROUNDS = 7
GOAL_ROUNDS = 41  # few problems: a steadier median
THREADS = tuple(range(1, min(2, os.cpu_count() or 1) + 1))
BATCH = 32  # from here on reading the weights is a small part of the work, wherever they lie


@dataclass(frozen=True)
class Problem:
    """What is multiplied: M tokens, K inputs, N rows; with how many threads, and where the weights are."""

    rows: int
    inputs: int
    tokens: int
    threads: int
    cold: bool

    @property
    def group(self) -> tuple[int, int, bool]:
        """Problems of one group share the files of their contenders."""
        return (self.rows, self.inputs, self.cold)

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + ("s" if self.threads != 1 else "")
        state = "weights from memory" if self.cold else "weights in cache"
        return f"N={self.rows} K={self.inputs} M={self.tokens}, {threads}, {state}"


@dataclass(frozen=True)
class Plan:
    """A run of the bench.

    Attributes:
        problems: in the order in which they are measured.
        bits: planes of BcqMatMul.
        group_size: inputs per scaling factor of BcqMatMul; 0 is row-wise.
        arithmetics: classes of BcqMatMul: ``near-exact``, ``int8``, ``float32``.
        weights: values of the session option ``bcq.weights``; an empty one leaves it alone.
        peers: ``none``, ``main`` (the best of each class) or ``all``.
        rounds: timed rounds.
    """

    problems: tuple[Problem, ...]
    bits: tuple[int, ...] = BITS
    group_size: int = GROUP_SIZE
    arithmetics: tuple[str, ...] = ARITHMETICS
    weights: tuple[str, ...] = ("",)
    peers: str = "main"
    rounds: int = ROUNDS

    def groups(self) -> dict[tuple[int, int, bool], list[Problem]]:
        """Problems by `Problem.group`, in order."""
        grouped: dict[tuple[int, int, bool], list[Problem]] = {}
        for problem in self.problems:
            grouped.setdefault(problem.group, []).append(problem)
        return grouped


def problems(
    shapes: Sequence[Shape],
    tokens: Sequence[int] = (1,),
    threads: Sequence[int] = THREADS,
    cold: Sequence[bool] = (True,),
) -> tuple[Problem, ...]:
    """All combinations."""
    chosen = product(shapes, cold, tokens, threads)
    return tuple(Problem(rows, inputs, m, t, is_cold) for (rows, inputs), is_cold, m, t in chosen)


def default_problems() -> tuple[Problem, ...]:
    """The README's table: one token at three shapes, from memory and cached, and batches at two of them."""
    most = (max(THREADS),)
    return (
        *problems(README),
        *problems(README[:2], (4,), most),
        *problems(README, cold=(False,)),
        *problems(README[:2], (BATCH, 256), most, cold=(False,)),
    )


def quick_problems() -> tuple[Problem, ...]:
    """Two small shapes, one token, weights from memory."""
    return problems([(4096, 1024), (1024, 1024)], threads=(max(THREADS),))


def full_problems() -> tuple[Problem, ...]:
    """Every matrix of GPT-2-medium, OPT-1.3B and Llama-8B; one, 4, 32 and 256 tokens; hot and cold."""
    shapes = (*GPT2_MEDIUM, *OPT_1B, *LLAMA_8B)
    return tuple(
        problem
        for shape in shapes
        for is_cold, tokens in ((True, (1, 4)), (False, (1, 4, BATCH, 256)))
        for problem in problems([shape], tokens, cold=(is_cold,))
    )


def goal_problems(shape: Shape = MAIN) -> tuple[Problem, ...]:
    """What the goals speak of: memory-bound and cached products of one token, and batches."""
    most = (max(THREADS),)
    return (
        *problems([shape], (1, 4), most),
        *problems([shape], (1,), cold=(False,)),
        *problems([shape], (BATCH, 256), most, cold=(False,)),
    )


def cost_problems(quick: bool = False) -> tuple[Problem, ...]:
    """Shapes from 0.6 to 58 million weights, so that others can be interpolated."""
    most = (max(THREADS),)
    if quick:
        return problems([(1024, 768), (2048, 2048), (4096, 4096)], (1,), most)
    shapes = ((768, 768), *GPT2_MEDIUM, *OPT_1B, *LLAMA_8B)
    return (*problems(shapes, (1,)), *problems(shapes, (4, BATCH), most, cold=(False,)))
