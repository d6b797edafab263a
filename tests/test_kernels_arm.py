# SPDX-License-Identifier: Apache-2.0
"""The library cross-built for 64-bit Arm, under an emulator: the bits that this machine computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bcq.kernels.core import Core
from bcq.packing import pack
from nodes import activations, random_weight
from other_cpu import OtherCpu, Problem, other_cpu

CORE = Core.load()
SHAPES = [(16, 32, 32), (50, 100, 32), (33, 257, 96), (17, 300, 300)]


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> OtherCpu:
    return other_cpu(tmp_path_factory.mktemp("arm"))


def test_the_scalar_kernels_give_the_bits_of_this_machine(arm: OtherCpu, tmp_path: Path) -> None:
    weights = [pack(random_weight(n, k, q, g, offset=q != 2)) for n, k, g in SHAPES for q in (1, 2, 3, 8)]
    types = (np.float32, np.float16)
    products = [Problem("scalar", w, activations(3, w.inputs, t)) for w in weights for t in types]
    gathers = [Problem("scalar", w, np.array([0, -1, w.rows - 2])) for w in weights]
    found = arm.solve([*products, *gathers], tmp_path)
    for problem, y in zip(products, found[: len(products)], strict=True):
        assert y.tobytes() == CORE.matmul(problem.a, problem.weight, kernel="scalar").tobytes()
    for problem, y in zip(gathers, found[len(products) :], strict=True):
        assert y.tobytes() == CORE.gather(problem.a, problem.weight, kernel="scalar").tobytes()


def test_an_unknown_instruction_set_is_refused_there_too(arm: OtherCpu) -> None:
    with pytest.raises(AssertionError, match="BCQ_ISA: got 'avx2', expected"):
        arm.choices("max", isa="avx2")
