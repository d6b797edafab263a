# SPDX-License-Identifier: Apache-2.0
"""The NEON kernels, by instruction and on an emulated CPU: to the bit those of AVX2 and of the model."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq.kernels.core import Core
from bcq.packing import PackedWeight, pack
from kernel_classes import level
from lookup_model import look_up
from nodes import Array, activations, among_planes, random_weight
from not_finite import INPUTS, assert_one_nan, poisoned_activations, poisoned_weight
from other_cpu import OtherCpu, Problem, other_cpu

KERNELS = ("neon_t16", "neon_t8", "neon_exact")
LOOK_UPS = ("neon_t16", "neon_t8")
SHAPES = [
    (16, 32, 32),  # one block of one chunk
    (50, 100, 32),
    (33, 257, 96),  # a tail of one input
    (70, 416, 128),
    (17, 300, 300),  # row-wise
    (20, 1000, 160),  # blocks of four chunks and of one
    (270, 640, 64),  # more tiles than pass at once
]
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="NEON is emulated by the instructions of x86")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> OtherCpu:
    return other_cpu(tmp_path_factory.mktemp("arm"))


def both(core: Core, kernel: str, a: Array, weight: PackedWeight, parts: int = 0) -> tuple[bytes, bytes]:
    """The bits of a NEON kernel, and of the AVX2 kernel of its method."""
    names = (kernel, kernel.replace("neon", "avx2"))
    ours, theirs = (
        core.matmul(a, weight, kernel=name, accuracy_level=level(kernel), parts=parts) for name in names
    )
    return ours.tobytes(), theirs.tobytes()


@x86
@pytest.mark.parametrize("kernel", LOOK_UPS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_shape_gives_the_bits_of_the_model(emulated: Core, kernel: str, bits: int) -> None:
    for rows, inputs, group in SHAPES:
        weight = random_weight(rows, inputs, bits, group, offset=bits % 2 == 1)
        a = activations(15, inputs)  # 8 + 4 + 2 + 1 rows of A
        a[np.random.default_rng(3).random(a.shape) < 0.01] *= 50
        expected = look_up(a, weight, kernel.removeprefix("neon_"))
        for tokens in (1, 15):
            y = emulated.matmul(a[:tokens], pack(weight), kernel=kernel, accuracy_level=level(kernel))
            assert y.tobytes() == expected[:tokens].tobytes(), (rows, inputs, group, tokens)


@x86
@each_kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_every_shape_gives_the_bits_of_avx2(emulated: Core, kernel: str, bits: int, dtype: Any) -> None:
    for rows, inputs, group in SHAPES:
        weight = pack(random_weight(rows, inputs, bits, group, offset=bits % 2 == 0))
        for tokens, parts in ((1, 1), (3, 2), (14, 3)):
            ours, theirs = both(emulated, kernel, activations(tokens, inputs, dtype), weight, parts)
            assert ours == theirs, (rows, inputs, group, tokens)


@x86
@each_kernel
@pytest.mark.parametrize(("bits", "planes"), [(1, 2), (2, 4), (3, 4), (3, 8), (5, 6), (7, 8)])
def test_planes_that_are_not_read_change_nothing(emulated: Core, kernel: str, bits: int, planes: int) -> None:
    for rows, inputs, group in SHAPES:
        weight = random_weight(rows, inputs, bits, group, offset=bits % 2 == 0)
        for tokens in (1, 14):
            a = activations(tokens, inputs)
            among, alone = (
                emulated.matmul(a, packed, kernel=kernel, accuracy_level=level(kernel))
                for packed in (among_planes(weight, planes), pack(weight))
            )
            assert among.tobytes() == alone.tobytes(), (rows, inputs, group, tokens)


@x86
@pytest.mark.parametrize("kernel", LOOK_UPS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_a_resident_copy_has_an_order_of_its_own_and_the_same_bits(
    emulated: Core, kernel: str, bits: int
) -> None:
    for rows, inputs, group in SHAPES:
        weight = pack(random_weight(rows, inputs, bits, group, offset=bits % 2 == 0))
        copy = emulated.make_resident(weight, kernel=kernel, accuracy_level=level(kernel))
        assert copy.tobytes() != weight.codes.tobytes()
        for tokens in (1, 15):
            a = activations(tokens, inputs)
            there, here = (
                emulated.matmul(a, weight, kernel=kernel, accuracy_level=level(kernel), resident=codes)
                for codes in (copy, None)
            )
            assert there.tobytes() == here.tobytes(), (rows, inputs, group, tokens)


@x86
@each_kernel
@pytest.mark.parametrize(("dtype", "powers"), [(np.float32, (-44, 38)), (np.float16, (-8, 5))])
def test_rows_of_any_magnitude_give_the_bits_of_avx2(
    emulated: Core, kernel: str, dtype: Any, powers: tuple[int, int]
) -> None:
    weight = pack(random_weight(60, 300, 3, 96, offset=True))
    a = np.clip(activations(20, 300), -3, 3)  # finite after scaling
    a *= 10.0 ** np.random.default_rng(5).integers(*powers, (20, 1)).astype(np.float32)
    a[3] = 0.0
    a[4, 100:] = 0.0  # blocks of zeros
    ours, theirs = both(emulated, kernel, a.astype(dtype), weight)
    assert ours == theirs


@x86
@each_kernel
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_not_finite_has_the_bits_of_avx2(emulated: Core, kernel: str, bits: int, dtype: Any) -> None:
    weight = poisoned_weight(bits)
    a = poisoned_activations(23, INPUTS, dtype)
    ours, theirs = both(emulated, kernel, a, weight)
    assert_one_nan(np.frombuffer(ours, dtype))
    assert ours == theirs


@x86
def test_what_runs_on_each_cpu_is_told_by_name(emulated: Core) -> None:
    neon = next(row.flags for row in emulated.kernels("BcqMatMul") if row.name == "neon_t16")
    cpus = {"every CPU of 64 bits": neon, "with products of bytes": neon | neon << 1}
    for flags in cpus.values():
        chosen = [emulated.select_matmul(bits=3, flags=flags, accuracy_level=n) for n in range(5)]
        assert chosen == ["neon_t16", "neon_exact", "neon_t16", "neon_t16", "neon_t8"]


def _problems(kernel: str) -> Iterator[Problem]:
    for number, (rows, inputs, group) in enumerate(SHAPES):
        for bits in (1, 2, 3, 4, 5):
            weight = pack(random_weight(rows, inputs, bits, group, offset=bits % 2 == 1))
            dtype = (np.float32, np.float16)[(number + bits) % 2]
            for tokens in (1, 15):
                yield Problem(kernel, weight, activations(tokens, inputs, dtype), level(kernel), parts=2)
    yield Problem(kernel, poisoned_weight(3), poisoned_activations(23, INPUTS), level(kernel))
    for bits, planes in ((1, 2), (2, 4), (3, 4), (3, 8), (5, 6)):  # codes of models of more bits
        weight = among_planes(random_weight(70, 416, bits, 128, offset=True), planes)
        for tokens in (1, 15):
            yield Problem(kernel, weight, activations(tokens, 416), level(kernel), parts=2)
            yield Problem(kernel, weight, activations(tokens, 416), level(kernel), resident=True)


@each_kernel
def test_an_emulated_cpu_gives_the_bits_of_avx2(arm: OtherCpu, kernel: str, tmp_path: Path) -> None:
    core = Core.load()
    name = kernel.replace("neon", "avx2")
    if any(row.name == name and row.flags & ~core.detected_flags() for row in core.kernels("BcqMatMul")):
        pytest.skip("this CPU has no AVX2 to compare with")
    problems = list(_problems(kernel))
    # The Cortex-A53 has the instructions that every 64-bit Arm has, and no others.
    for problem, y in zip(problems, arm.solve(problems, tmp_path, "cortex-a53"), strict=True):
        here = core.matmul(problem.a, problem.weight, kernel=name, accuracy_level=problem.level)
        assert y.tobytes() == here.tobytes(), (problem.weight.codes.shape, len(problem.a))


@pytest.mark.parametrize("cpu", ["cortex-a53", "neoverse-n1", "max"])
def test_every_emulated_cpu_takes_the_neon_kernels(arm: OtherCpu, cpu: str) -> None:
    isa, *kernels = arm.choices(cpu)
    assert isa == ("neon" if cpu == "cortex-a53" else "dotprod")
    assert kernels[1:] == ["neon_t16", "neon_exact", "neon_t16", "neon_t16", "neon_t8"]
    assert set(arm.choices(cpu, isa="scalar")) == {"scalar"}
