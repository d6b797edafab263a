# SPDX-License-Identifier: Apache-2.0
"""The oracle: W = sum_i alpha_i B_i + offset, said once more in the slowest way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcq.bcq import BcqWeight, ceil_div, check_group_size, pack_bits, unpack_bits


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 130), st.integers(0, 2**31))
def test_unpack_bits_is_the_inverse_of_pack_bits(rows: int, inputs: int, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2, (rows, inputs)).astype(np.uint8)
    np.testing.assert_array_equal(unpack_bits(pack_bits(bits), inputs), bits)


def test_bit_j_of_word_c_is_input_32c_plus_j() -> None:
    bits = np.zeros((1, 70), np.uint8)
    bits[0, 32 + 5] = 1
    np.testing.assert_array_equal(pack_bits(bits), [[0, 1 << 5, 0]])


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize(("inputs", "group_size"), [(70, 32), (70, 70), (20, 128), (64, 32)])
def test_dequantize_is_the_formula(inputs: int, group_size: int, offset: bool) -> None:
    rng = np.random.default_rng(0)
    groups = ceil_div(inputs, group_size)
    signs = rng.integers(0, 2, (3, 4, inputs))
    alpha = rng.random((3, 4, groups)).astype(np.float16)
    offsets = rng.standard_normal((4, groups)).astype(np.float16) if offset else None
    dense = BcqWeight(pack_bits(signs), alpha, offsets, inputs, group_size).dequantize()
    for n, k in np.ndindex(4, inputs):
        expected = sum(float(alpha[i, n, k // group_size]) * (2 * signs[i, n, k] - 1) for i in range(3))
        expected += 0.0 if offsets is None else float(offsets[n, k // group_size])
        # Three or four float32 additions of numbers below 8: at most 4 roundings of 8 x 2^-24 each.
        assert abs(dense[n, k] - expected) <= 4 * 8 * 2**-24


def test_a_nan_alpha_reaches_its_group_and_no_other() -> None:
    alpha = np.ones((2, 2, 2), np.float16)
    alpha[1, 0, 1] = np.nan
    dense = BcqWeight(pack_bits(np.ones((2, 2, 64))), alpha, None, 64, 32).dequantize()
    assert np.isnan(dense[0, 32:]).all()
    assert np.isfinite(dense[0, :32]).all()
    assert np.isfinite(dense[1]).all()


def test_tensors_that_do_not_fit_are_refused_by_name() -> None:
    words = pack_bits(np.ones((2, 4, 64)))
    with pytest.raises(ValueError, match="alpha: got float16"):
        BcqWeight(words, np.ones((2, 4, 3), np.float16), None, 64, 32)
    with pytest.raises(ValueError, match="offset: got float32"):
        BcqWeight(words, np.ones((2, 4, 2), np.float16), np.ones((4, 2), np.float32), 64, 32)
    with pytest.raises(ValueError, match="words"):
        BcqWeight(words, np.ones((2, 4, 3), np.float16), None, 96, 32)


@pytest.mark.parametrize("group_size", [0, -32, 48, 31])
def test_a_group_size_that_is_no_multiple_of_32_is_refused(group_size: int) -> None:
    with pytest.raises(ValueError, match="group_size"):
        check_group_size(group_size, 64)


def test_a_group_size_equal_to_k_or_above_it_is_accepted() -> None:
    check_group_size(48, 48)
    check_group_size(128, 48)
