# SPDX-License-Identifier: Apache-2.0
"""One set of planes for several precisions: what each precision reads, what it costs and how well it fits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bcq.bcq import BcqWeight
from bcq.errors import InputError
from bcq.precisions.solve import refit, solve_nested
from bcq.solver import relative_error, solve

SIZES = {2: 128, 3: 256, 4: 128}


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("offset", [False, True])
def test_every_precision_reads_the_first_planes_and_its_own_factors(offset: bool) -> None:
    nested = solve_nested(normal(20, 300), SIZES, offset, rounds=2)
    for bits, size in SIZES.items():
        weight = nested.at(bits)
        assert (weight.bits, weight.group_size, weight.groups) == (bits, size, -(-300 // size))
        assert (weight.offset is not None) == offset
        assert np.array_equal(weight.words, nested.words[:bits])
    with pytest.raises(KeyError):
        nested.at(1)


def test_storage_is_within_a_tenth_of_the_file_of_the_highest_precision() -> None:
    nested = solve_nested(normal(16, 768), SIZES, rounds=1)
    four = nested.at(4)
    # 4 planes + 4 / 128 of 16 bits; 2 / 128 and 3 / 256 of 16 bits more: (4.5 + 0.25 + 0.1875) / 4.5 = 1.097.
    assert np.isclose(nested.nbytes / (four.words.nbytes + four.alpha.nbytes), 4.9375 / 4.5)


def test_each_precision_is_near_one_that_is_solved_for_itself() -> None:
    weights = normal(32, 384)
    nested = solve_nested(weights, {2: 128, 3: 128, 4: 128})
    for bits, most in ((2, 1.15), (3, 1.12), (4, 1.25)):  # 1.10, 1.08 and 1.18 on more weights
        apart = relative_error(weights, solve(weights, bits, 128))
        assert apart <= relative_error(weights, nested.at(bits)) <= most * apart


def test_codes_for_all_precisions_are_better_than_those_of_the_highest_alone() -> None:
    weights = normal(32, 384)
    four = solve(weights, 4, 128)
    kept, joint = refit(weights, four, {2: 128}), solve_nested(weights, {2: 128, 4: 128})
    assert relative_error(weights, joint.at(2)) < relative_error(weights, kept.at(2))


def test_more_rounds_do_not_make_the_summed_error_worse() -> None:
    weights = normal(32, 256)
    apart = {bits: relative_error(weights, solve(weights, bits, 128)) for bits in (2, 4)}

    def total(rounds: int) -> float:
        nested = solve_nested(weights, {2: 128, 4: 128}, rounds=rounds)
        return sum(relative_error(weights, nested.at(bits)) / apart[bits] for bits in apart)

    # Without rounding every round lowers the sum; float16 factors move it by about 2^-11 of itself.
    assert total(8) <= total(1) * (1 + 2.0**-10)


def test_refitting_leaves_the_highest_precision_as_it_was() -> None:
    weights = normal(20, 300, seed=3)
    four = solve(weights, 4, 128, offset=True)
    nested = refit(weights, four, {2: 0, 3: 64})
    same = nested.at(4)
    assert np.array_equal(same.alpha, four.alpha)
    assert np.array_equal(same.words, four.words)
    assert nested.at(2).groups == 1
    cut = BcqWeight(four.words[:3], four.alpha[:3], four.offset, 300, 128)
    assert relative_error(weights, nested.at(3)) < relative_error(weights, cut)


def test_factors_are_the_least_squares_fit_to_their_prefix() -> None:
    weights = normal(6, 64, seed=2)
    weight = refit(weights, solve(weights, 3, 32), {2: 32}).at(2)
    missed = weights - weight.dequantize()
    for plane in range(2):
        only = BcqWeight(weight.words[plane : plane + 1], np.ones((1, 6, 2), np.float16), None, 64, 32)
        # The residual is orthogonal to each plane, up to the rounding of two alphas below 2 to 11 bits.
        slope = (missed * only.dequantize()).reshape(6, 2, 32).sum(axis=2)
        assert np.abs(slope).max() <= 32 * 2 * 2 * 2.0**-12


def test_the_same_seed_gives_the_same_planes() -> None:
    one, two = (solve_nested(normal(10, 200), {2: 64, 3: 0}, rounds=2) for _ in range(2))
    assert np.array_equal(one.words, two.words)
    assert np.array_equal(one.at(3).alpha, two.at(3).alpha)


def test_a_matrix_of_zeros_is_exact_at_every_precision() -> None:
    nested = solve_nested(np.zeros((4, 64), np.float32), {2: 32, 4: 32}, rounds=1)
    assert not nested.at(2).dequantize().any()
    assert not nested.at(4).dequantize().any()


def test_what_cannot_be_solved_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one for each precision"):
        solve_nested(normal(4, 64), {})
    with pytest.raises(ValueError, match="multiple of 32"):
        solve_nested(normal(4, 64), {2: 33})
    with pytest.raises(ValueError, match="expected fewer than 2"):
        refit(normal(4, 64), solve(normal(4, 64), 2, 32), {2: 32})
    with pytest.raises(InputError):
        solve_nested(np.full((4, 64), np.nan, np.float32), {2: 32})
