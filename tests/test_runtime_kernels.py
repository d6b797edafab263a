# SPDX-License-Identifier: Apache-2.0
"""Every built kernel that this CPU runs, called through the C ABI, against the NumPy oracle in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcq import contract
from bcq.bcq import BcqWeight
from bcq.kernels.core import Core
from bcq.packing import PackedWeight, pack
from kernel_classes import bound_of_level, level, method, relative_error, tolerance
from nodes import Array, activations, magnitudes, product, random_weight
from not_finite import INPUTS, assert_one_nan, poisoned_activations, poisoned_weight

CORE = Core.load()
MATMUL = [row.name for row in CORE.kernels(contract.MATMUL.name) if not row.flags & ~CORE.detected_flags()]
GATHER = [row.name for row in CORE.kernels(contract.GATHER.name) if not row.flags & ~CORE.detected_flags()]
SIZES = [(16, 32), (50, 100), (33, 257), (1, 1), (70, 416)]


def group_sizes(inputs: int) -> list[int]:
    return sorted({32, 64, 128, inputs})


def multiply(kernel: str, a: Array, weight: PackedWeight, parts: int = 0) -> Array:
    """A W^T by one kernel, at an accuracy level that it takes."""
    return CORE.matmul(a, weight, kernel=kernel, parts=parts, accuracy_level=level(kernel))


def float32_tolerance(a: Array, weight: BcqWeight) -> Array:
    """The same for float32 arithmetic (accuracy_level 1): K roundings of partial sums, in the worst order."""
    return np.asarray((weight.inputs + weight.bits + 2) * 2.0**-24 * magnitudes(a, weight))


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_each_matmul_kernel_agrees_with_the_oracle_for_all_sizes_and_groups(
    kernel: str, bits: int, offset: bool, dtype: Any
) -> None:
    for rows, inputs in SIZES:
        for group_size in group_sizes(inputs):
            weight = random_weight(rows, inputs, bits, group_size, offset)
            for tokens in (1, 3):
                a = activations(tokens, inputs, dtype)
                error = np.abs(multiply(kernel, a, pack(weight)) - product(a, weight))
                assert (error <= tolerance(kernel, a, weight)).all(), (rows, inputs, group_size, tokens)


@pytest.mark.parametrize("kernel", MATMUL)
def test_each_matmul_kernel_keeps_the_promised_relative_error(kernel: str) -> None:
    # ops/README.md gives it as the root mean square over outputs.
    weight = random_weight(256, 1024, 3, 128, offset=True)
    a = activations(17, 1024)
    exact = product(a, weight)
    error = multiply(kernel, a, pack(weight)) - exact
    assert np.linalg.norm(error) <= relative_error(kernel) * np.linalg.norm(exact)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_accuracy_level_one_computes_in_float32(bits: int) -> None:
    weight = random_weight(50, 300, bits, 64, offset=True)
    a = activations(3, 300)
    error = np.abs(CORE.matmul(a, pack(weight), accuracy_level=1) - product(a, weight))
    assert (error <= float32_tolerance(a, weight)).all()


@given(
    rows=st.integers(1, 80),
    inputs=st.integers(1, 200),
    bits=st.integers(1, 8),
    group=st.sampled_from([32, 64, 96, 128, 0]),
    offset=st.booleans(),
    tokens=st.integers(0, 5),
    half=st.booleans(),
    kernel=st.sampled_from(MATMUL),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=300, deadline=None)
def test_any_matmul_problem_agrees_with_the_oracle(
    rows: int,
    inputs: int,
    bits: int,
    group: int,
    offset: bool,
    tokens: int,
    half: bool,
    kernel: str,
    seed: int,
) -> None:
    weight = random_weight(rows, inputs, bits, group or inputs, offset, seed)
    a = activations(tokens, inputs, np.float16 if half else np.float32, seed)
    error = np.abs(multiply(kernel, a, pack(weight)) - product(a, weight))
    assert error.shape == (tokens, rows)
    assert (error <= tolerance(kernel, a, weight)).all()


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize("bits", [1, 3])
def test_activations_made_to_round_all_one_way_stay_within_the_documented_bound(
    kernel: str, bits: int
) -> None:
    """Four equal activations fix the scale; every other sum lies just below a half step of it."""
    weight = random_weight(32, 128, bits, 128)
    weight.words[:] = 0xFFFFFFFF
    step = 4.0 / (127 * 255 - 1)
    for below in (0.499, 0.25, 0.499 * 4.0 / 32767 / step):
        a = np.full((1, 128), below * step / 4, np.float32)
        a[:, :4] = 1.0
        error = np.abs(multiply(kernel, a, pack(weight)) - product(a, weight))
        assert (error <= bound_of_level(kernel) * magnitudes(a, weight)).all()


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize(("magnitude", "alpha"), [(2.0**100, 65504.0), (1e38, 1e-5)])
def test_a_finite_result_is_not_lost_to_large_activations(
    kernel: str, magnitude: float, alpha: float
) -> None:
    weight = random_weight(16, 1024, 1, 128)
    weight.alpha[:] = alpha
    weight.words[:] = 0xAAAAAAAA  # every second sign is minus, so the exact sum is small
    a = np.full((1, 1024), magnitude, np.float32)
    a[:, 0] *= 0.5
    y = multiply(kernel, a, pack(weight))
    assert np.isfinite(y).all()
    assert (np.abs(y - product(a, weight)) <= bound_of_level(kernel) * magnitudes(a, weight)).all()


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_row_alone_gives_the_same_bits_as_in_a_batch(kernel: str, dtype: Any) -> None:
    for bits in (1, 2, 3, 4, 5):
        weight = pack(random_weight(70, 416, bits, 128, offset=True))
        a = activations(37, 416, dtype)
        batch = multiply(kernel, a, weight)
        for row in range(a.shape[0]):
            assert multiply(kernel, a[row : row + 1], weight).tobytes() == batch[row].tobytes()


@pytest.mark.parametrize("kernel", MATMUL)
def test_rows_beyond_one_panel_are_computed_with_little_scratch(kernel: str) -> None:
    weight = pack(random_weight(33, 96, 3, 32, offset=False))
    a = activations(150, 96)  # two panels of 64 rows and a rest
    batch = multiply(kernel, a, weight, parts=2)
    alone = [multiply(kernel, a[row : row + 1], weight) for row in (0, 63, 64, 127, 128, 149)]
    assert np.concatenate(alone).tobytes() == batch[[0, 63, 64, 127, 128, 149]].tobytes()


@pytest.mark.parametrize("kernel", MATMUL)
def test_any_split_of_the_work_gives_the_same_bits(kernel: str) -> None:
    weight = pack(random_weight(200, 416, 3, 64, offset=True))
    a = activations(19, 416)
    whole = multiply(kernel, a, weight, parts=1).tobytes()
    for parts in (2, 3, 5, 8, 13, 40):
        assert multiply(kernel, a, weight, parts=parts).tobytes() == whole


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_poisoned_activation_reaches_every_output_of_its_row_and_no_other(
    kernel: str, poison: float, dtype: Any
) -> None:
    weight = random_weight(40, 300, 3, 64, offset=True)
    clean = activations(5, 300, dtype)
    for at in (0, 31, 63, 64, 299):
        a = clean.copy()
        a[2, at] = poison
        y = multiply(kernel, a, pack(weight))
        others = [0, 1, 3, 4]
        assert not np.isfinite(y[2]).any()
        assert y[others].tobytes() == multiply(kernel, clean, pack(weight))[others].tobytes()


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["alpha_1", "alpha_rest", "offset"])
def test_a_poisoned_scaling_factor_reaches_its_own_output_and_no_other(
    kernel: str, poison: float, field: str
) -> None:
    packed = pack(random_weight(40, 300, 3, 64, offset=True))
    a = activations(3, 300)
    clean = multiply(kernel, a, packed)
    factors = getattr(packed, field)
    factors[(1, 2, ..., 5) if field != "alpha_rest" else (1, 2, 0, 5)] = poison
    y = multiply(kernel, a, packed)
    assert not np.isfinite(y[:, 21]).any()
    others = np.arange(40) != 21
    assert (y[:, others] == clean[:, others]).all()


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("factors", ["finite", "poisoned"])
def test_what_is_not_finite_has_the_same_bits_alone_in_any_batch_and_in_any_split(
    kernel: str, bits: int, dtype: Any, factors: str
) -> None:
    # Sign and payload of a NaN depend on the order of operands, so kernels return one NaN only.
    weight = poisoned_weight(bits) if factors == "poisoned" else pack(random_weight(40, INPUTS, bits, 64))
    a = poisoned_activations(23, INPUTS, dtype)
    batch = multiply(kernel, a, weight, parts=1)
    assert_one_nan(batch)
    for parts in (2, 3):
        assert multiply(kernel, a, weight, parts=parts).tobytes() == batch.tobytes()
    for count in (1, 2, 5, 17):
        for first in range(0, len(a) - count + 1, count):
            some = multiply(kernel, a[first : first + count], weight)
            assert some.tobytes() == batch[first : first + count].tobytes(), (first, count)


def two_groups(first: float, second: float) -> tuple[Array, BcqWeight]:
    """Two groups of 128 inputs and one plane of plus signs; the factors of the first group are zero."""
    weight = random_weight(16, 256, 1, 128)
    weight.words[:] = 0xFFFFFFFF
    weight.alpha[..., 0], weight.alpha[..., 1] = 0, 1
    return np.repeat(np.array([[first, second]], np.float32), 128, axis=1), weight


@pytest.mark.parametrize("kernel", MATMUL)
@pytest.mark.parametrize("largest", [2.0**-60, 1.0, 2.0**70, 2.0**110])
def test_activations_from_a_millionth_of_a_millionth_of_the_largest_on_count_whatever_its_factors(
    kernel: str, largest: float
) -> None:
    # ops/README.md: what is below 2^-40 of the largest of its row may count as zero.
    a, weight = two_groups(largest, largest * 2.0**-40)
    error = np.abs(multiply(kernel, a, pack(weight)) - product(a, weight))
    assert (error <= bound_of_level(kernel) * magnitudes(a, weight)).all()


@pytest.mark.parametrize("kernel", [name for name in MATMUL if method(name) in ("t16", "t8")])
def test_activations_far_below_the_largest_of_their_row_count_as_zero_in_look_ups(kernel: str) -> None:
    a, weight = two_groups(1.0, 1e-31)
    assert (multiply(kernel, a, pack(weight)) == 0).all()
    a, weight = two_groups(1e-31, 1e-31)  # nothing in the row is larger
    error = np.abs(multiply(kernel, a, pack(weight)) - product(a, weight))
    assert (error <= bound_of_level(kernel) * magnitudes(a, weight)).all()


@pytest.mark.parametrize("kernel", [name for name in MATMUL if level(name) == 1])
@pytest.mark.parametrize(("largest", "step"), [(1.0, 2.0**-149), (2.0**100, 2.0**-85)])
def test_level_one_loses_half_a_subnormal_step_a_rounding(kernel: str, largest: float, step: float) -> None:
    for small in (2.0**-60, 2.0**-80, 1e-30, 2.0**-120, 2.0**-140):
        a, weight = two_groups(largest, small)
        error = np.abs(multiply(kernel, a, pack(weight)) - product(a, weight))
        roundings = weight.inputs + 2 * weight.bits + 2
        assert (error <= roundings * (2.0**-24 * magnitudes(a, weight) + step / 2)).all(), small


@pytest.mark.parametrize("kernel", MATMUL)
def test_large_small_and_zero_activations_keep_the_bound(kernel: str) -> None:
    weight = random_weight(40, 300, 3, 64)
    for scale in (0.0, 1e-38, 1e-30, 1e30):
        a = activations(2, 300) * np.float32(scale)
        error = np.abs(multiply(kernel, a, pack(weight)) - product(a, weight))
        # Below 2^-126 a float32 has a fixed step of 2^-149: each partial result may lose half of that.
        floor = 300 * 3 * 2.0**-149
        assert (error <= tolerance(kernel, a, weight) + floor).all(), scale


@pytest.mark.parametrize("kernel", GATHER)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_each_gather_kernel_equals_the_oracle_to_the_bit(
    kernel: str, bits: int, offset: bool, dtype: Any
) -> None:
    for rows, inputs in SIZES:
        for group_size in group_sizes(inputs):
            weight = random_weight(rows, inputs, bits, group_size, offset)
            indices = np.random.default_rng(0).integers(-rows, rows, 9).astype(dtype)
            expected = weight.dequantize()[indices]
            for parts in (1, 4):
                y = CORE.gather(indices, pack(weight), kernel=kernel, parts=parts)
                assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kernel", GATHER)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_gathered_rows_with_factors_that_are_not_finite_have_one_nan(kernel: str, bits: int) -> None:
    y = CORE.gather(np.arange(40), poisoned_weight(bits), kernel=kernel)
    assert_one_nan(y)
    assert np.isposinf(y).any()
    assert np.isneginf(y).any()


def test_a_kernel_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown kernel name"):
        CORE.matmul(activations(1, 32), pack(random_weight(16, 32, 1, 32)), kernel="avx9000")
