# SPDX-License-Identifier: Apache-2.0
"""No kernel reads or writes a byte beside its tensors: each of them touches a forbidden page."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import numpy as np
import pytest

from bcq import contract
from bcq.kernels.core import Core, GatherProblem, MatMulProblem
from bcq.packing import PackedWeight, pack
from guarded import guarded
from hostile.runner import isolated
from nodes import activations, one_node, open_session, random_weight

CORE = Core.load()
KERNELS = {
    op: [row.name for row in CORE.kernels(op) if row.flags & ~CORE.detected_flags() == 0]
    for op in ("BcqMatMul", "BcqGather")
}
SIDES = pytest.mark.parametrize("before", [False, True], ids=["page behind", "page in front"])


def shapes(count: int) -> list[tuple[int, ...]]:
    """Random (rows of A, outputs, inputs, planes, group size), ragged ones most of all."""
    choose = random.Random(count)
    found: list[tuple[int, ...]] = []
    for _ in range(count):
        inputs = choose.choice([1, 31, 32, 33, 63, 100, 128, 129, 257, 520])
        group = choose.choice([inputs, 32, 64, 128])
        rows = choose.choice([1, 15, 16, 17, 33, 50, 130])
        found.append((choose.choice([1, 2, 3, 8, 9, 17]), rows, inputs, choose.randint(1, 8), group))
    return found


def weight_pointers(weight: PackedWeight, before: bool, keep: list[Any]) -> dict[str, int | None]:
    held = {name: guarded(tensor, before=before) for name, tensor in weight.tensors().items()}
    keep.extend(held.values())
    return {name: tensor.ctypes.data if tensor.size else None for name, tensor in held.items()}


def multiply(kernel: str, shape: tuple[int, ...], level: int, dtype: Any, before: bool) -> bool:
    """Runs one problem; False when the kernel does not take it."""
    M, N, K, bits, group = shape
    weight = pack(random_weight(N, K, bits, group, offset=bits % 2 == 0))
    a = guarded(activations(M, K, dtype), before=before)
    y = guarded(np.zeros((M, N), dtype), before=before)
    keep: list[Any] = []
    problem = MatMulProblem(
        M=M,
        K=K,
        N=N,
        group_size=group,
        bits=bits,
        a_is_half=int(dtype == np.float16),
        accuracy_level=level,
        a=a.ctypes.data,
        a_stride=K,
        y=y.ctypes.data,
        y_stride=N,
        **weight_pointers(weight, before, keep),
    )
    name, address = kernel.encode(), ctypes.byref(problem)
    size = CORE.library.bcq_matmul_scratch_bytes(address, name)
    scratch = guarded(np.zeros(size, np.uint8), before=before, aligned=64)
    error = CORE.library.bcq_matmul(address, name, scratch.ctypes.data, 3, None, None)
    return error is None and bool(np.isfinite(y).all())


@SIDES
@pytest.mark.parametrize("kernel", KERNELS["BcqMatMul"])
def test_a_matrix_product_stays_inside_its_tensors(kernel: str, before: bool) -> None:
    def work() -> tuple[str, str]:
        done = 0
        for shape in shapes(60):
            for level in (0, 1, 4):
                for dtype in (np.float32, np.float16):
                    done += multiply(kernel, shape, level, dtype, before)
        return "done", str(done)

    outcome, done = isolated(work)
    assert outcome == "done", done
    assert int(done) >= 100


@SIDES
@pytest.mark.parametrize("kernel", KERNELS["BcqGather"])
def test_a_gather_stays_inside_its_tensors(kernel: str, before: bool) -> None:
    def work() -> tuple[str, str]:
        for count, N, K, bits, group in shapes(60):
            keep: list[Any] = []
            indices = guarded(np.random.default_rng(0).integers(-N, N, count), before=before)
            y = guarded(np.zeros((count, K), np.float32), before=before)
            weight = pack(random_weight(N, K, bits, group, offset=bits % 2 == 0))
            problem = GatherProblem(
                count=count,
                K=K,
                N=N,
                group_size=group,
                bits=bits,
                indices=indices.ctypes.data,
                y=y.ctypes.data,
                **weight_pointers(weight, before, keep),
            )
            assert CORE.library.bcq_gather(ctypes.byref(problem), kernel.encode(), 3, None, None) is None
        return "done", ""

    assert isolated(work) == ("done", "")


@SIDES
def test_an_operator_stays_inside_the_activations_that_a_caller_feeds(before: bool) -> None:
    weight = random_weight(50, 100, 3, 32)
    session = open_session(one_node(contract.MATMUL, weight, dims=("m",)))

    def work() -> tuple[str, str]:
        a = guarded(activations(7, 100), before=before)
        y = np.asarray(session.run(None, {"A": a})[0])
        return "done", str(y.tobytes() == CORE.matmul(np.array(a), pack(weight)).tobytes())

    assert isolated(work) == ("done", "True")


@pytest.mark.parametrize("before", [False, True])
def test_one_byte_too_far_is_noticed(before: bool) -> None:
    def work() -> tuple[str, str]:
        array = guarded(np.zeros(100, np.uint8), before=before)
        return "read", str(ctypes.string_at(array.ctypes.data + (-1 if before else 100), 1))

    assert isolated(work)[0] == "crash"
