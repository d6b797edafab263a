# SPDX-License-Identifier: Apache-2.0
"""The AVX-512 look-up kernels on any CPU, emulated by instruction: to the bits of the model."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

from bcq.kernels.core import Core
from bcq.packing import pack
from kernel_classes import tolerance
from lookup_model import look_up
from nodes import activations, among_planes, product, random_weight
from not_finite import INPUTS, assert_one_nan, poisoned_activations, poisoned_weight

LEVELS = {"avx512_t16": 0, "avx512_t8": 4}  # the accuracy_level of each kernel
LIMITS = {"avx512_t16": 1e-4, "avx512_t8": 1e-2}  # ops/README.md: relative root mean square error
KERNELS = pytest.mark.parametrize("kernel", LEVELS)

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 kernels")


SHAPES = [
    (16, 32, 32),  # one block of one chunk
    (50, 100, 32),
    (33, 257, 96),  # a tail of one input
    (70, 416, 128),
    (17, 300, 300),  # row-wise
    (20, 1000, 160),  # blocks of four chunks and of one
    (150, 640, 64),  # more tiles than pass at once
]


@KERNELS
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_shape_gives_the_bits_of_the_model(emulated: Core, kernel: str, bits: int, dtype: Any) -> None:
    for rows, inputs, group in SHAPES:
        weight = random_weight(rows, inputs, bits, group, offset=bits % 2 == 1)
        packed = pack(weight)
        a = activations(15, inputs, dtype)  # 8 + 4 + 2 + 1 rows of A
        a[np.random.default_rng(3).random(a.shape) < 0.01] *= 50
        expected = look_up(a, weight, kernel.removeprefix("avx512_"))
        for tokens in (1, 15):
            y = emulated.matmul(a[:tokens], packed, kernel=kernel, accuracy_level=LEVELS[kernel])
            assert y.tobytes() == expected[:tokens].tobytes(), (rows, inputs, group, tokens)


@KERNELS
@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
def test_long_rows_and_many_tiles_give_the_same_bits(emulated: Core, kernel: str, tokens: int) -> None:
    # Four tiles pass at once for one row of A, sixteen for more: here several times, with a rest.
    weight = random_weight(300, 2500, 2, 128, offset=True)
    a = activations(tokens, 2500)
    y = emulated.matmul(a, pack(weight), kernel=kernel, accuracy_level=LEVELS[kernel])
    assert y.tobytes() == look_up(a, weight, kernel.removeprefix("avx512_")).tobytes()


@KERNELS
@pytest.mark.parametrize(("bits", "planes"), [(2, 4), (3, 4), (2, 3), (5, 8)])
def test_planes_that_are_not_read_change_no_bit(emulated: Core, kernel: str, bits: int, planes: int) -> None:
    for rows, inputs, group in SHAPES:
        weight = random_weight(rows, inputs, bits, group, offset=True)
        a = activations(15, inputs)
        for tokens in (1, 15):
            alone, among = (
                emulated.matmul(a[:tokens], packed, kernel=kernel, accuracy_level=LEVELS[kernel])
                for packed in (pack(weight), among_planes(weight, planes))
            )
            assert among.tobytes() == alone.tobytes(), (rows, inputs, group, tokens)


@KERNELS
def test_the_error_is_that_of_the_accuracy_level(emulated: Core, kernel: str) -> None:
    weight = random_weight(64, 1024, 3, 128, offset=True)
    a = activations(5, 1024)
    exact = product(a, weight)
    error = emulated.matmul(a, pack(weight), kernel=kernel, accuracy_level=LEVELS[kernel]) - exact
    assert np.linalg.norm(error) <= LIMITS[kernel] * np.linalg.norm(exact)


@KERNELS
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_any_split_of_the_work_gives_the_same_bits(emulated: Core, kernel: str, parts: int) -> None:
    weight = pack(random_weight(200, 416, 3, 64, offset=True))
    a = activations(11, 416)
    level = LEVELS[kernel]
    whole = emulated.matmul(a, weight, kernel=kernel, accuracy_level=level, parts=1)
    split = emulated.matmul(a, weight, kernel=kernel, accuracy_level=level, parts=parts)
    assert split.tobytes() == whole.tobytes()


@KERNELS
@pytest.mark.parametrize("outsider", [np.nan, np.inf, 1e35, 1e-40])
def test_a_row_that_tables_do_not_hold_leaves_its_neighbours_as_they_are(
    emulated: Core, kernel: str, outsider: float
) -> None:
    weight = random_weight(40, 300, 3, 64)
    level = LEVELS[kernel]
    a = activations(12, 300)
    clean = emulated.matmul(a, pack(weight), kernel=kernel, accuracy_level=level)
    if np.isfinite(outsider):
        a[5] = outsider
    else:
        a[5, 17] = outsider
    y = emulated.matmul(a, pack(weight), kernel=kernel, accuracy_level=level)
    assert np.delete(y, 5, axis=0).tobytes() == np.delete(clean, 5, axis=0).tobytes()
    if np.isfinite(outsider):
        exact = product(a[5:6], weight)[0]
        # The row is scaled into range by a power of two and back: the same tables, the same bound.
        limit = tolerance(kernel, a[5:6], weight)[0] + 2.0**-149
        assert (np.abs(y[5] - exact) <= limit).all()
    else:
        assert not np.isfinite(y[5]).any()


@KERNELS
def test_the_largest_signed_sums_do_not_wrap(emulated: Core, kernel: str) -> None:
    # Equal magnitudes make every quad reach the end of the table's range, for both signs: entries are exact.
    weight = random_weight(32, 128, 2, 128)
    weight.words[:] = 0xFFFFFFFF
    for a in (np.full((1, 128), 3.0, np.float32), np.full((1, 128), -3.0, np.float32)):
        exact = product(a, weight)
        y = emulated.matmul(a, pack(weight), kernel=kernel, accuracy_level=LEVELS[kernel])
        assert np.abs(y - exact).max() <= 1e-6 * np.abs(exact).max()


@KERNELS
@pytest.mark.parametrize(("dtype", "powers"), [(np.float32, (-44, 38)), (np.float16, (-8, 5))])
def test_the_bits_are_those_of_avx2_for_rows_of_any_magnitude(
    emulated: Core, kernel: str, dtype: Any, powers: tuple[int, int]
) -> None:
    weight = pack(random_weight(60, 300, 3, 96, offset=True))
    a = np.clip(activations(20, 300), -3, 3)  # finite after scaling
    a *= 10.0 ** np.random.default_rng(5).integers(*powers, (20, 1)).astype(np.float32)
    a[3] = 0.0
    a[4, 100:] = 0.0  # blocks of zeros
    a = a.astype(dtype)
    assert np.isfinite(a).all()
    names = (kernel, kernel.replace("avx512", "avx2"))
    ours, theirs = (emulated.matmul(a, weight, kernel=name, accuracy_level=LEVELS[kernel]) for name in names)
    assert ours.tobytes() == theirs.tobytes()


@KERNELS
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["alpha_1", "alpha_rest", "offset"])
def test_a_poisoned_scaling_factor_reaches_its_own_output_and_no_other(
    emulated: Core, kernel: str, poison: float, field: str
) -> None:
    packed = pack(random_weight(40, 300, 3, 64, offset=True))
    a = activations(9, 300)
    clean = emulated.matmul(a, packed, kernel=kernel, accuracy_level=LEVELS[kernel])
    factors = getattr(packed, field)
    factors[(1, 2, ..., 5) if field != "alpha_rest" else (1, 2, 0, 5)] = poison
    y = emulated.matmul(a, packed, kernel=kernel, accuracy_level=LEVELS[kernel])
    assert not np.isfinite(y[:, 21]).any()
    assert np.delete(y, 21, axis=1).tobytes() == np.delete(clean, 21, axis=1).tobytes()


@KERNELS
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_not_finite_has_the_bits_of_avx2_alone_and_in_a_batch(
    emulated: Core, kernel: str, bits: int, dtype: Any
) -> None:
    weight = poisoned_weight(bits)
    a = poisoned_activations(23, INPUTS, dtype)
    level = LEVELS[kernel]
    batch = emulated.matmul(a, weight, kernel=kernel, accuracy_level=level)
    assert_one_nan(batch)
    theirs = emulated.matmul(a, weight, kernel=kernel.replace("avx512", "avx2"), accuracy_level=level)
    assert batch.tobytes() == theirs.tobytes()
    for row in range(len(a)):
        alone = emulated.matmul(a[row : row + 1], weight, kernel=kernel, accuracy_level=level)
        assert alone.tobytes() == batch[row].tobytes()


def test_int8_tables_are_for_those_who_ask_for_them(emulated: Core) -> None:
    flags = {row.name: row.flags for row in emulated.kernels("BcqMatMul")}
    for kernel, level in LEVELS.items():
        assert emulated.select_matmul(bits=3, flags=flags[kernel], accuracy_level=level) == kernel
    for level in (2, 3):
        chosen = emulated.select_matmul(bits=3, flags=flags["avx512_t16"], accuracy_level=level)
        assert chosen == "avx512_t16"
