# SPDX-License-Identifier: Apache-2.0
"""Integer grids as float16 alphas and offsets, and back: exact exactly where arithmetic says so."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bcq.bcq import BcqWeight
from bcq.errors import InputError, UnsupportedError, UsageError
from bcq.importers.as_grid import Blocks, block_size, blocks_of, levels_of
from bcq.importers.factors import PLANE, ROUND, Factors, Scales, factors_of, relative_error
from bcq.importers.fields import pack_fields, planes_of, unpack_fields, values_of
from foreign import Grid, stream

# Halves that may be halved, and multiplied by 2^(q-2) <= 64, without leaving the normal numbers of float16.
_SAFE = st.integers(0x0800, 0x6000).map(lambda bits: np.uint16(bits).view(np.float16))
BITS = (2, 3, 4, 8)


def scales_of(grid: Grid) -> Scales:
    return Scales.of_grid(grid.scales, grid.zeros, grid.bits)


def weight_of(grid: Grid, inexact: str = "refuse") -> BcqWeight:
    words = planes_of(grid.levels.astype(np.uint8), grid.bits)
    return factors_of(scales_of(grid), "w", inexact).weight(words, grid.levels.shape[1], grid.group_size)


def one(scale: Any, zero: Any, bits: int, inexact: str = "refuse") -> Factors:
    return factors_of(Scales.of_grid(np.array([[scale]]), np.array([[zero]]), bits), "w", inexact)


@pytest.mark.parametrize("bits", BITS)
def test_a_symmetric_grid_is_exact_with_alphas_that_halve_and_an_offset_of_half_a_step(bits: int) -> None:
    grid = Grid(5, 70, bits, 32, symmetric=True)
    weight = weight_of(grid)
    assert weight.bits == bits
    for plane in range(bits - 1):
        assert np.array_equal(weight.alpha[plane], 2 * weight.alpha[plane + 1])
    assert weight.offset is not None
    assert np.array_equal(weight.offset, -weight.alpha[-1])
    # Bit-equal, although float32 adds q + 1 numbers: all are multiples of half an ulp of s (11 bits) below
    # 2^(q+1) s, so no sum has more than 11 + 1 + q + 1 <= 21 bits.
    assert np.array_equal(weight.dequantize().astype(np.float64), grid.dense())


@given(scale=_SAFE, bits=st.sampled_from(BITS), zero=st.integers(0, 256))
def test_the_offset_is_exact_where_its_product_has_eleven_bits_and_refused_elsewhere(
    scale: np.float16, bits: int, zero: int
) -> None:
    true = Fraction(float(scale)) * (Fraction(2**bits - 1, 2) - zero)
    if abs(true) > 60000:
        return
    fits = Fraction(float(np.float16(float(true)))) == true
    if fits:
        factors = one(scale, zero, bits)
        assert factors.rounded == 0
        assert Fraction(float(factors.offset[0, 0] if factors.offset is not None else 0)) == true
    else:
        with pytest.raises(UnsupportedError) as caught:
            one(scale, zero, bits)
        assert caught.value.code == "E403"


@given(scale=_SAFE, bits=st.sampled_from((2, 3, 4)), zero=st.integers(0, 16))
def test_one_plane_more_makes_every_zero_point_exact(scale: np.float16, bits: int, zero: int) -> None:
    factors = one(scale, min(zero, 2**bits), bits, PLANE)
    true = Fraction(float(scale)) * (Fraction(2**bits - 1, 2) - min(zero, 2**bits))
    offset = 0 if factors.offset is None else Fraction(float(factors.offset[0, 0]))
    constant = Fraction(float(factors.alpha[-1, 0, 0])) if factors.planes > bits else 0
    assert factors.rounded == 0
    assert offset + constant == true


def test_the_plane_that_is_added_is_one_everywhere_and_padding_stays_zero() -> None:
    grid = Grid(3, 40, 4, 32)
    weight = weight_of(grid, PLANE)
    assert weight.bits == 5
    assert np.array_equal(weight.words[-1], np.tile(np.array([[2**32 - 1, 2**8 - 1]], np.uint32), (3, 1)))
    assert np.array_equal(weight.dequantize().astype(np.float64), grid.dense())


def test_eight_bits_have_no_room_for_one_plane_more() -> None:
    with pytest.raises(UnsupportedError, match="moves by up to") as caught:
        weight_of(Grid(3, 40, 8, 32), PLANE)
    assert "plane" not in caught.value.hint


def test_rounding_tells_the_largest_step_and_the_error_that_was_measured() -> None:
    grid = Grid(20, 100, 4, 32)
    scales, words = scales_of(grid), planes_of(grid.levels.astype(np.uint8), 4)
    factors = factors_of(scales, "w", ROUND)
    weight = factors.weight(words, 100, 32)
    missed = np.abs(weight.dequantize() - grid.dense())
    steps = grid.scales.astype(np.float64)[:, np.arange(100) // 32]
    # An offset of at most 8.5 steps is rounded by half a unit in its last place, 2^-11 of it.
    assert 0 < factors.worst <= 8.5 * 2**-11
    assert np.isclose((missed / steps).max(), factors.worst, rtol=1e-6)
    assert 0 < factors.rounded <= factors.alpha[0].size
    expected = np.square(missed).sum() / np.square(grid.dense()).sum()
    assert np.isclose(relative_error(words, scales, weight), expected, rtol=1e-9)


def test_scales_in_float32_are_exact_when_float16_holds_them_and_refused_otherwise() -> None:
    grid = Grid(4, 64, 4, 32, symmetric=True)
    grid.scales = grid.scales.astype(np.float32)
    assert np.array_equal(weight_of(grid).dequantize().astype(np.float64), grid.dense())
    grid.scales[2, 1] *= np.float32(1 + 2.0**-20)
    for inexact in ("refuse", PLANE):  # a constant plane cannot mend an alpha
        with pytest.raises(UnsupportedError, match="1 of 8 groups exactly, first output 2, group 1"):
            weight_of(grid, inexact)
    assert weight_of(grid, ROUND).bits == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_no_number_is_refused_by_place(value: float) -> None:
    grid = Grid(3, 64, 4, 32)
    grid.scales[1, 1] = value
    with pytest.raises(
        InputError, match="'w' has a scale that is NaN or infinite, at output 1, group 1"
    ) as caught:
        weight_of(grid, ROUND)
    assert caught.value.code == "E106"


def test_scales_beyond_float16_are_refused_even_where_rounding_is_allowed() -> None:
    with pytest.raises(UnsupportedError, match="beyond the largest float16 number"):
        one(np.float32(30000), 8, 4, ROUND)  # its 2^2-fold


def test_a_scale_whose_half_is_no_float16_number_is_refused() -> None:
    smallest = np.float16(2.0**-24)
    with pytest.raises(UnsupportedError):
        one(smallest, 8, 4)


def test_an_unknown_way_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        one(1.0, 8, 4, "guess")


@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 2**32))
def test_fields_are_a_stream_of_bits_from_the_lowest_on(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (2, count)).astype(np.uint8)
    words = np.array([stream(row, bits) for row in values], np.uint32)
    assert np.array_equal(unpack_fields(words, bits, count), values)
    assert np.array_equal(unpack_fields(pack_fields(values, bits), bits, count), values)


def test_planes_start_with_the_most_significant_bit() -> None:
    values = np.array([[0, 1, 2, 3]], np.uint8)
    planes = planes_of(values, 2)
    assert planes.tolist() == [[[0b1100]], [[0b1010]]]
    assert np.array_equal(values_of(np.array([[[0, 0, 1, 1]], [[0, 1, 0, 1]]], np.uint8)), values)


def restored(weight: BcqWeight, blocks: Blocks) -> NDArray[np.float64]:
    """What a MatMulNBits with these blocks means."""
    levels = unpack_fields(levels_of(weight, blocks), blocks.bits, blocks.block_size).astype(np.float64)
    count = blocks.scales.shape[1]
    zeros: NDArray[Any] = np.full(blocks.scales.shape, 2.0 ** (blocks.bits - 1))
    if blocks.zeros is not None and blocks.zeros.dtype == np.uint8:
        zeros = unpack_fields(blocks.zeros, blocks.bits, count)
    elif blocks.zeros is not None:
        zeros = blocks.zeros
    dense: NDArray[np.float64] = (levels - zeros[..., None]) * blocks.scales[..., None]
    whole: NDArray[np.float64] = dense.reshape(weight.rows, -1)
    return whole[:, : weight.inputs]


@pytest.mark.parametrize(
    ("bits", "stored", "inexact"),
    [(2, 2, PLANE), (3, 4, PLANE), (4, 4, PLANE), (2, 2, "refuse"), (3, 4, "refuse"), (8, 8, "refuse")],
)
def test_a_grid_goes_back_to_the_same_numbers(bits: int, stored: int, inexact: str) -> None:
    grid = Grid(6, 100, bits, 32, symmetric=inexact == "refuse")
    weight = weight_of(grid, inexact)
    blocks = blocks_of(weight, "w", np.float16)
    assert blocks.bits == stored
    assert np.array_equal(restored(weight, blocks), grid.dense())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_around_zero_without_an_offset_go_back_with_a_zero_point_of_a_half(bits: int) -> None:
    grid = Grid(4, 64, bits, 32)
    grid.zeros = np.full(grid.zeros.shape, (2**bits - 1) / 2)
    weight = weight_of(grid)
    assert weight.offset is None
    blocks = blocks_of(weight, "w", np.float16)
    assert blocks.zeros is not None
    assert blocks.zeros.dtype == np.float16
    assert np.array_equal(restored(weight, blocks), grid.dense())


def test_groups_that_are_no_power_of_two_go_back_as_several_blocks() -> None:
    grid = Grid(3, 200, 4, 96, symmetric=True)
    blocks = blocks_of(weight_of(grid), "w", np.float32)
    assert blocks.block_size == 32
    assert blocks.scales.shape == (3, 7)
    assert np.array_equal(restored(weight_of(grid), blocks), grid.dense())


@pytest.mark.parametrize(
    ("group_size", "inputs", "expected"),
    [(32, 100, 32), (96, 200, 32), (128, 1000, 128), (1024, 2048, 256), (384, 384, 256), (100, 100, 128),
     (9, 9, 16), (128, 64, 64)],
)  # fmt: skip
def test_the_block_is_the_largest_power_of_two_that_no_group_ends_in(
    group_size: int, inputs: int, expected: int
) -> None:
    assert block_size(group_size, inputs) == expected


def test_alphas_that_do_not_halve_are_no_grid_and_the_first_place_is_named() -> None:
    weight = weight_of(Grid(4, 64, 4, 32, symmetric=True))
    weight.alpha[1, 2, 1] *= np.float16(1.01)
    with pytest.raises(
        UnsupportedError, match=r"w is no integer grid: output 2, group 1 has the alphas"
    ) as caught:
        blocks_of(weight, "w", np.float16)
    assert caught.value.code == "E403"


def test_an_offset_that_is_no_multiple_of_the_step_is_no_grid() -> None:
    weight = weight_of(Grid(4, 64, 4, 32, symmetric=True))
    assert weight.offset is not None
    weight.offset[3, 0] *= np.float16(1.01)
    with pytest.raises(UnsupportedError, match=r"output 3, group 0 has an offset of|zero-point"):
        blocks_of(weight, "w", np.float16)


def test_a_group_of_zeros_goes_back_and_one_with_only_an_offset_does_not() -> None:
    weight = weight_of(Grid(4, 64, 4, 32, symmetric=True))
    assert weight.offset is not None
    weight.alpha[:, 1, 1] = weight.offset[1, 1] = 0
    assert (restored(weight, blocks_of(weight, "w", np.float32))[1, 32:] == 0).all()
    weight.offset[1, 1] = 1
    with pytest.raises(UnsupportedError, match="output 1, group 1"):
        blocks_of(weight, "w", np.float32)
