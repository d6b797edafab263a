# SPDX-License-Identifier: Apache-2.0
"""The AVX2 look-up kernels: the bits of the model for blocks of any length, outliers, extreme magnitudes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bcq import contract
from bcq.kernels.core import Core
from bcq.packing import pack
from lookup_model import look_up
from nodes import activations, product, random_weight

KERNEL = "avx2_t16"
CORE = Core.load()
ROWS = {row.name: row for row in CORE.kernels(contract.MATMUL.name)}

pytestmark = pytest.mark.skipif(
    KERNEL not in ROWS or bool(ROWS[KERNEL].flags & ~CORE.detected_flags()), reason="this CPU has no AVX2"
)


def relative_error(a: np.ndarray, bits: int, rows: int, group: int) -> float:
    """Root mean square over all outputs, against float64."""
    weight = random_weight(rows, a.shape[1], bits, group)
    exact = product(a, weight)
    return float(np.linalg.norm(CORE.matmul(a, pack(weight), kernel=KERNEL) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("group", [32, 64, 96, 128, 160, 1000])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_outliers_keep_the_near_exact_error_for_blocks_of_any_length(group: int, bits: int) -> None:
    # Entries are rounded to s = m / 32384, m the largest sum of four |a| of a block: an error of s / sqrt(12)
    # for each of its 32 quads, against an output of about |a| of the block times the same alpha. m <= 2 |a|,
    # the ratio is at most 2 sqrt(32 / 12) / 32384 = 1.0e-4, when four equal activations outweigh the rest.
    a = activations(5, 1000)
    outliers = np.random.default_rng(3).random(a.shape) < 0.01
    a[outliers] *= 50
    assert relative_error(a, bits, 100, group) <= 1e-4


SHAPES = [
    (16, 32, 32),
    (50, 100, 32),
    (33, 257, 96),
    (70, 416, 128),
    (17, 300, 300),
    (20, 1000, 160),
    (300, 160, 64),  # more tiles than pass at once, and an odd one
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
@pytest.mark.parametrize("kernel", ["avx2_t16", "avx2_t8"])
def test_every_shape_gives_the_bits_of_the_model_alone_in_a_batch_and_resident(
    kernel: str, bits: int, dtype: Any
) -> None:
    level = 4 if kernel == "avx2_t8" else 0
    for rows, inputs, group in SHAPES:
        weight = random_weight(rows, inputs, bits, group, offset=bits % 2 == 1)
        packed = pack(weight)
        resident = CORE.make_resident(packed, kernel=kernel, accuracy_level=level)
        a = activations(19, inputs, dtype)
        a[np.random.default_rng(3).random(a.shape) < 0.01] *= 50
        expected = look_up(a, weight, kernel.removeprefix("avx2_"))
        for tokens in (1, 2, 19):
            for codes in (None, resident):
                y = CORE.matmul(a[:tokens], packed, kernel=kernel, accuracy_level=level, resident=codes)
                assert y.tobytes() == expected[:tokens].tobytes(), (rows, inputs, group, tokens)


@pytest.mark.parametrize("kernel", ["avx2_t16", "avx2_t8"])
def test_rows_that_tables_do_not_hold_are_computed_from_resident_codes_too(kernel: str) -> None:
    level = 4 if kernel == "avx2_t8" else 0
    weight = pack(random_weight(40, 300, 3, 64, offset=True))
    resident = CORE.make_resident(weight, kernel=kernel, accuracy_level=level)
    a = activations(4, 300)
    a[1, 7] = np.nan
    a[2] *= np.float32(1e37)
    from_disk = CORE.matmul(a, weight, kernel=kernel, accuracy_level=level)
    copied = CORE.matmul(a, weight, kernel=kernel, accuracy_level=level, resident=resident)
    assert copied.tobytes() == from_disk.tobytes()


def test_eight_bits_keep_the_error_of_their_class() -> None:
    # As for 16 bits, with steps of m / 127: on normal data m is about 6 of 11.3 = |a| in a block of 128, and
    # 6 / 11.3 sqrt(32 / 12) / 127 = 0.7e-2.
    a = activations(7, 1024)
    weight = random_weight(100, 1024, 3, 128)
    exact = product(a, weight)
    error = CORE.matmul(a, pack(weight), kernel="avx2_t8", accuracy_level=4) - exact
    assert np.linalg.norm(error) <= 1.0e-2 * np.linalg.norm(exact)


def test_four_equal_activations_in_a_block_of_zeros_are_the_worst_case_and_stay_within_it() -> None:
    a = np.zeros((1, 128), np.float32)
    a[0, 40:44] = 1.7
    assert relative_error(a, 3, 256, 128) <= 1e-4


@pytest.mark.parametrize("scale", [3e38, 1e35, 1e-35, 1e-42])
def test_magnitudes_at_the_ends_of_float32_are_computed_without_overflow(scale: float) -> None:
    a = np.sign(activations(3, 256)) * np.float32(scale)
    weight = random_weight(40, 256, 2, 128)
    exact = product(a, weight)
    y = CORE.matmul(a, pack(weight), kernel=KERNEL)
    fits = np.abs(exact) < np.finfo(np.float32).max
    step = 2.0**-149  # of subnormal results
    assert (np.abs(y - exact)[fits] <= 1e-4 * np.abs(exact).max() + step).all()
    assert np.isinf(y[~fits]).all()


def test_rows_of_very_different_magnitude_do_not_disturb_each_other() -> None:
    a = activations(20, 256)
    a[::3] *= np.float32(1e37)
    a[1::3] *= np.float32(1e-30)
    weight = pack(random_weight(40, 256, 3, 64))
    batch = CORE.matmul(a, weight, kernel=KERNEL)
    alone = [CORE.matmul(row[None], weight, kernel=KERNEL)[0] for row in a]
    assert np.stack(alone).tobytes() == batch.tobytes()


def test_zero_activations_give_zeros() -> None:
    y = CORE.matmul(np.zeros((2, 100), np.float32), pack(random_weight(33, 100, 3, 32)), kernel=KERNEL)
    assert not y.any()


def test_float32_on_request_is_not_left_to_the_tables() -> None:
    flags = ROWS[KERNEL].flags
    assert CORE.select_matmul(bits=3, flags=flags) == KERNEL
    assert CORE.select_matmul(bits=3, flags=flags, accuracy_level=1) != KERNEL
