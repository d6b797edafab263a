# SPDX-License-Identifier: Apache-2.0
"""The tile16 layout: a permutation of bits that a slow reading of ops/README.md agrees with."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bcq.bcq import BcqWeight, ceil_div, pack_bits
from bcq.packing import pack, unpack

SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 40), st.integers(1, 100), st.sampled_from([32, 64, 0]))


def random_weight(bits: int, rows: int, inputs: int, group_size: int, offset: bool, seed: int) -> BcqWeight:
    rng = np.random.default_rng(seed)
    width = group_size or inputs
    groups = ceil_div(inputs, width)
    words = pack_bits(rng.integers(0, 2, (bits, rows, inputs)))
    alpha = rng.random((bits, rows, groups)).astype(np.float16)
    offsets = rng.standard_normal((rows, groups)).astype(np.float16) if offset else None
    return BcqWeight(words, alpha, offsets, inputs, width)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.booleans(), st.integers(0, 2**31))
def test_unpack_is_the_inverse_of_pack(shape: tuple[int, int, int, int], offset: bool, seed: int) -> None:
    weight = random_weight(*shape, offset, seed)
    again = unpack(pack(weight))
    np.testing.assert_array_equal(again.words, weight.words)
    np.testing.assert_array_equal(again.alpha, weight.alpha)
    assert (again.offset is None) == (weight.offset is None)
    if again.offset is not None and weight.offset is not None:
        np.testing.assert_array_equal(again.offset, weight.offset)


def test_every_bit_lies_where_the_normative_page_says() -> None:
    rng = np.random.default_rng(0)
    signs = rng.integers(0, 2, (3, 20, 70))
    alpha = rng.random((3, 20, 3)).astype(np.float16)
    packed = pack(BcqWeight(pack_bits(signs), alpha, None, 70, 32))
    assert packed.codes.shape == (2, 3, 3, 16)
    for plane, row, k in np.ndindex(signs.shape):
        word = int(packed.codes[row // 16, k // 32, plane, row % 16])
        assert (word >> (k % 32)) & 1 == signs[plane, row, k]
    for row, group in np.ndindex(20, 3):
        assert packed.alpha_1[row // 16, group, row % 16] == alpha[0, row, group]
        for plane in (1, 2):
            assert packed.alpha_rest[row // 16, group, plane - 1, row % 16] == alpha[plane, row, group]


def test_padding_is_zero() -> None:
    signs = np.ones((2, 17, 33), np.uint8)
    packed = pack(
        BcqWeight(pack_bits(signs), np.ones((2, 17, 2), np.float16), np.ones((17, 2), np.float16), 33, 32)
    )
    ones = int(np.unpackbits(packed.codes.view(np.uint8)).sum())
    assert ones == signs.size
    assert not packed.alpha_1[1, :, 1:].any()
    assert not packed.alpha_rest[1, :, :, 1:].any()
    assert not packed.offset[1, :, 1:].any()


def test_one_plane_has_an_empty_rest_and_no_offset_has_shape_zero() -> None:
    packed = pack(random_weight(1, 5, 40, 0, offset=False, seed=1))
    assert packed.alpha_rest.shape == (1, 1, 0, 16)
    assert packed.offset.shape == (0,)


def test_the_code_hash_is_sha256_of_the_little_endian_codes() -> None:
    packed = pack(random_weight(2, 16, 64, 32, offset=True, seed=2))
    assert packed.code_hash() == hashlib.sha256(packed.codes.astype("<u4").tobytes()).hexdigest()


def test_bytes_count_all_four_tensors() -> None:
    packed = pack(random_weight(3, 32, 256, 128, offset=True, seed=3))
    # 2 tiles x 8 chunks x 3 planes x 16 rows x 4 bytes; 3 alphas and an offset x 32 rows x 2 groups x 2 bytes
    assert packed.nbytes == 2 * 8 * 3 * 16 * 4 + 4 * 32 * 2 * 2
