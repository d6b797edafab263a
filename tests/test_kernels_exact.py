# SPDX-License-Identifier: Apache-2.0
"""The float32 kernels (accuracy_level 1): error, bits that depend on nothing but the row, extreme rows."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

from bcq import contract
from bcq.bcq import BcqWeight, ceil_div
from bcq.kernels.core import Core
from bcq.packing import pack
from kernel_copies import build
from nodes import Array, activations, magnitudes, product, random_weight
from not_finite import INPUTS, assert_one_nan, poisoned_activations, poisoned_weight

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 kernels")

CORE = Core.load()
KERNEL = "avx2_exact"
EMULATED = "avx512_exact"
ROWS = {row.name: row for row in CORE.kernels(contract.MATMUL.name)}
HERE = not ROWS[KERNEL].flags & ~CORE.detected_flags() if KERNEL in ROWS else False
needs_avx2 = pytest.mark.skipif(not HERE, reason="this CPU has no AVX2")
SIZES = [
    (16, 32, 32),
    (50, 100, 32),
    (33, 257, 96),
    (70, 416, 128),
    (17, 300, 300),
    (1, 1, 1),
    (40, 1000, 64),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Core:
    files = ("bcq_matmul/avx2_exact.cc", "bcq_matmul/avx512_exact.cc")
    return build(tmp_path_factory.mktemp("emulated"), files)


def run(core: Core, kernel: str, a: Array, weight: BcqWeight, parts: int = 0) -> Array:
    return core.matmul(a, pack(weight), kernel=kernel, parts=parts, accuracy_level=1)


def tolerance(a: Array, weight: BcqWeight) -> Array:
    """Largest error per output, u = 2^-24, S = sum of |alpha| and |offset| of a weight.

    A weight is offset - alpha_1 - ... - alpha_q and then + 2 alpha_i for every bit: 2 q roundings of at most
    u S, as no partial sum exceeds S. A product and its sum round once, 32 in a chunk; adding up ceil(K / 32)
    chunks rounds once each. Every partial sum is at most sum |a| S, so the error is at most
    (2 q + 32 + ceil(K / 32)) u sum |a| S, and a 1.001 covers the squares of u.
    """
    roundings = 2 * weight.bits + 32 + ceil_div(weight.inputs, 32)
    bound = 1.001 * roundings * 2.0**-24 * magnitudes(a, weight)
    if a.dtype == np.float16:
        bound = bound + 2.0**-11 * np.abs(product(a, weight)) + 2.0**-25  # the result is rounded once
    return np.asarray(bound)


@needs_avx2
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_error_stays_within_the_roundings_of_its_arithmetic(bits: int, offset: bool, dtype: Any) -> None:
    for rows, inputs, group in SIZES:
        weight = random_weight(rows, inputs, bits, group, offset)
        for tokens in (1, 2, 3, 4, 5, 6, 7, 13):
            a = activations(tokens, inputs, dtype)
            error = np.abs(run(CORE, KERNEL, a, weight) - product(a, weight))
            assert (error <= tolerance(a, weight)).all(), (rows, inputs, group, tokens)


@needs_avx2
@pytest.mark.parametrize("kernel", [KERNEL, "scalar"])
@pytest.mark.parametrize("inputs", [1024, 4096])
def test_random_data_comes_out_within_half_a_millionth(kernel: str, inputs: int) -> None:
    # Partial sums of n random terms grow like sqrt(n) and each rounding is at most u / sqrt(3) of one: with
    # C = K / 32 chunks about u / sqrt(3) sqrt(32 / 2 + C / 2) = 3.1e-7 of the result at K = 4096.
    weight = random_weight(64, inputs, 3, 128, offset=True)
    a = activations(9, inputs)
    exact = product(a, weight)
    error = run(CORE, kernel, a, weight) - exact
    assert np.linalg.norm(error) <= 5e-7 * np.linalg.norm(exact)


def whole_numbers(rows: int, inputs: int, bits: int, group: int) -> BcqWeight:
    """A weight whose values are whole numbers below 2^8."""
    weight = random_weight(rows, inputs, bits, group, offset=True)
    weight.alpha[:] = (2.0 ** np.arange(bits)[:, None, None]).astype(np.float16)
    assert weight.offset is not None
    weight.offset[:] = np.random.default_rng(5).integers(-9, 9, weight.offset.shape).astype(np.float16)
    return weight


@needs_avx2
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_sums_that_float32_holds_are_exact_to_the_bit(bits: int) -> None:
    # Whole activations up to 20, weights below 2^9, 416 inputs: all partial sums are whole and below 2^24.
    weight = whole_numbers(70, 416, bits, 32)
    a = np.random.default_rng(7).integers(-20, 21, (9, 416)).astype(np.float32)
    assert (run(CORE, KERNEL, a, weight) == product(a, weight)).all()


@needs_avx2
@pytest.mark.parametrize("bits", [1, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_row_has_the_same_bits_alone_in_any_batch_and_in_any_split(bits: int, dtype: Any) -> None:
    weight = random_weight(70, 416, bits, 64, offset=True)
    a = activations(70, 416, dtype)
    whole = run(CORE, KERNEL, a, weight, parts=1)
    for count in (1, 2, 3, 4, 5, 6, 7, 11, 64, 65, 69):
        for first in (0, 70 - count):
            some = run(CORE, KERNEL, a[first : first + count], weight, parts=count % 4)
            assert some.tobytes() == whole[first : first + count].tobytes(), (count, first)


@needs_avx2
@pytest.mark.parametrize("scale", [3e38, 2.0**77, 2.0**-61, 1e-38, 1e-43])
def test_extreme_rows_are_computed_in_range_and_overflow_only_where_the_result_does(scale: float) -> None:
    a = activations(4, 300)
    a[1:3] = np.sign(a[1:3]) * np.float32(scale)
    for bits in (1, 3):
        weight = random_weight(40, 300, bits, 64, offset=True)
        exact = product(a, weight)
        y = run(CORE, KERNEL, a, weight)
        fits = np.abs(exact) < np.finfo(np.float32).max
        step = 2.0**-149  # a subnormal result is rounded to a multiple of it
        assert (np.abs(y - exact) <= tolerance(a, weight) + step)[fits].all()
        assert np.isinf(y[~fits]).all()
        assert run(CORE, KERNEL, a[:1], weight).tobytes() == y[:1].tobytes()


@needs_avx2
def test_a_large_result_of_cancelling_terms_is_not_lost_on_the_way() -> None:
    # The first half adds up to 2^9 times what float32 holds, the second half takes it away again.
    weight = random_weight(16, 1024, 1, 128)
    weight.alpha[:] = 1.0
    weight.words[:] = 0xFFFFFFFF
    a = np.full((1, 1024), np.float32(2.0**127))
    a[:, 512:] *= -1
    a[0, 1000] = 0.0
    assert (run(CORE, KERNEL, a, weight) == 2.0**127).all()


@needs_avx2
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_reaches_every_output_of_its_row_and_no_other_row(poison: float) -> None:
    weight = random_weight(40, 300, 3, 64)
    weight.alpha[1] = weight.alpha[0]
    weight.alpha[2] = 0.0  # half of all weights are zero, and an infinity times zero is no number
    for tokens in (1, 2, 7):
        a = activations(tokens, 300)
        clean = run(CORE, KERNEL, a, weight)
        a[0, 299] = poison
        y = run(CORE, KERNEL, a, weight)
        assert not np.isfinite(y[0]).any()
        assert y[1:].tobytes() == clean[1:].tobytes()


@needs_avx2
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_avx512_gives_the_bits_of_avx2(emulated: Core, bits: int, dtype: Any) -> None:
    for rows, inputs, group in SIZES:
        weight = random_weight(rows, inputs, bits, group, offset=bits % 2 == 0)
        for tokens in (1, 2, 3, 7):
            a = activations(tokens, inputs, dtype)
            a[0, 0] *= dtype(2.0**-14)
            here = run(emulated, KERNEL, a, weight)
            assert run(emulated, EMULATED, a, weight).tobytes() == here.tobytes(), (
                rows,
                inputs,
                group,
                tokens,
            )


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_avx512_gives_the_bits_of_avx2_for_what_is_not_finite(emulated: Core, bits: int, dtype: Any) -> None:
    weight = poisoned_weight(bits)
    a = poisoned_activations(23, INPUTS, dtype)
    batch = emulated.matmul(a, weight, kernel=EMULATED, accuracy_level=1)
    assert_one_nan(batch)
    theirs = emulated.matmul(a, weight, kernel=KERNEL, accuracy_level=1)
    assert batch.tobytes() == theirs.tobytes()
    for row in range(len(a)):
        alone = emulated.matmul(a[row : row + 1], weight, kernel=EMULATED, accuracy_level=1)
        assert alone.tobytes() == batch[row].tobytes()


@needs_avx2
def test_level_one_takes_this_kernel_and_no_other_level_does() -> None:
    flags = ROWS[KERNEL].flags
    chosen = [CORE.select_matmul(bits=3, flags=flags, accuracy_level=level) for level in range(5)]
    assert chosen[1] == KERNEL
    assert KERNEL not in (*chosen[:1], *chosen[2:])
