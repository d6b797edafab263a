# SPDX-License-Identifier: Apache-2.0
"""Several precisions of one matrix under second moments: better outputs at each, in any sizes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from bcq.errors import InputError
from bcq.precisions import calibrated
from bcq.precisions.book import NestedBook, nested_book
from bcq.precisions.calibrated import POWER, solve_nested_calibrated
from bcq.precisions.solve import NestedWeight, solve_apart, solve_nested
from bcq.solver import calibrated_error, solve_calibrated
from bcq.solver.levels import all_signs

Array = NDArray[np.float32]
SIZES = {2: 32, 3: 0, 4: 32}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def second_moments(inputs: int, seed: int = 1) -> Array:
    """Of inputs that depend on each other, as those of real layers do."""
    seen = normal(4 * inputs, inputs, seed=seed) @ normal(inputs, inputs, seed=seed + 1) / inputs**0.5
    seen += normal(4 * inputs, 1, seed=seed + 2) * 2  # and share a direction
    moments: Array = (seen.T @ seen / len(seen)).astype(np.float32)
    return moments


def errors(weights: Array, nested: NestedWeight, moments: Array) -> dict[int, float]:
    return {bits: calibrated_error(weights, nested.at(bits), moments) for bits in nested.precisions}


CASES: list[tuple[str, Mapping[int, int], bool, tuple[int, int]]] = [
    ("groups of several sizes", SIZES, False, (24, 128)),
    ("offsets", SIZES, True, (24, 128)),
    ("one group a row", {2: 0, 3: 0, 4: 0}, False, (24, 96)),
    ("nothing divides", {2: 64, 3: 96, 4: 32}, False, (13, 147)),
    ("rows shorter than groups", {2: 128, 4: 64}, True, (7, 45)),
    ("the lowest precision", {1: 32, 2: 32}, False, (24, 96)),
    ("a gap", {2: 32, 4: 64}, False, (24, 96)),
    ("many planes", {4: 32, 6: 32}, False, (9, 64)),
    ("one row", SIZES, False, (1, 64)),
    ("one precision", {3: 32}, False, (16, 64)),
]


@pytest.mark.parametrize(
    ("sizes", "offset", "shape"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_every_precision_errs_less_at_the_output_than_without_calibration(
    sizes: Mapping[int, int], offset: bool, shape: tuple[int, int]
) -> None:
    weights, moments = normal(*shape), second_moments(shape[1])
    solved = solve_nested_calibrated(weights, moments, sizes, offset)
    plain = solve_nested(weights, sizes, offset)
    better, before = errors(weights, solved, moments), errors(weights, plain, moments)
    assert list(better) == sorted(sizes)
    for bits, size in sizes.items():
        weight = solved.at(bits)
        assert (weight.bits, weight.group_size) == (bits, size or shape[1])
        assert (weight.offset is not None) == offset
        assert np.array_equal(weight.words, solved.words[:bits])
        assert np.isfinite(weight.dequantize()).all()
        assert better[bits] < 0.8 * before[bits]
    assert list(better.values()) == sorted(better.values(), reverse=True)


def test_no_row_is_worse_than_the_data_free_one() -> None:
    weights, moments = normal(40, 64, seed=3), second_moments(64)
    alone = solve_apart(weights, SIZES)
    shares = {bits: calibrated_error(weights, one, moments) ** -POWER for bits, one in alone.items()}

    def of_rows(nested: NestedWeight) -> NDArray[np.float64]:
        missed = {bits: (nested.at(bits).dequantize() - weights).astype(np.float64) for bits in SIZES}
        total = np.zeros(len(weights))
        for bits, share in shares.items():
            total += share * np.einsum("nk,kl,nl->n", missed[bits], moments, missed[bits])
        return total

    solved = solve_nested_calibrated(weights, moments, SIZES)
    # Errors are sums of float32 levels, whose 2^-22 of rounding is small beside errors of 2^-10 and more.
    assert (of_rows(solved) <= of_rows(solve_nested(weights, SIZES)) * (1 + 2.0**-10)).all()


def test_one_precision_is_as_good_as_the_solver_for_one() -> None:
    weights, moments = normal(48, 96), second_moments(96)
    one = calibrated_error(weights, solve_calibrated(weights, moments, 2, 32), moments)
    nested = solve_nested_calibrated(weights, moments, {2: 32})
    # Other candidates of the same kind: they differ by a few per cent from one seed to the next.
    assert calibrated_error(weights, nested.at(2), moments) < 1.1 * one


def test_inputs_that_are_never_used_change_nothing_for_the_others() -> None:
    weights, moments = normal(16, 64), second_moments(64)
    moments[:, 40:] = moments[40:] = 0
    solved = solve_nested_calibrated(weights, moments, SIZES)
    before = errors(weights, solve_nested(weights, SIZES), moments)
    for bits, error in errors(weights, solved, moments).items():
        assert error < before[bits]


def test_without_second_moments_the_data_free_solution_stays() -> None:
    weights = normal(8, 64)
    solved, plain = (
        solve_nested_calibrated(weights, np.zeros((64, 64), np.float32), SIZES),
        solve_nested(weights, SIZES),
    )
    assert np.array_equal(solved.words, plain.words)
    assert all(np.array_equal(solved.at(bits).alpha, plain.at(bits).alpha) for bits in SIZES)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
def test_a_matrix_that_is_exact_or_of_any_size_stays_finite(scale: float) -> None:
    weights = normal(6, 64) * np.float32(scale)
    solved = solve_nested_calibrated(weights, second_moments(64), SIZES)
    assert all(np.isfinite(solved.at(bits).dequantize()).all() for bits in SIZES)
    if scale == 0:
        assert not solved.at(4).dequantize().any()


def test_the_same_matrix_gives_the_same_bytes_and_rows_are_solved_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, moments = normal(70, 64), second_moments(64)
    first, second = (solve_nested_calibrated(weights, moments, SIZES) for _ in range(2))
    assert np.array_equal(first.words, second.words)
    assert all(np.array_equal(first.at(bits).alpha, second.at(bits).alpha) for bits in SIZES)
    monkeypatch.setattr(calibrated, "BLOCK_WEIGHTS", 1)  # 32 rows at a time
    parts = errors(weights, solve_nested_calibrated(weights, moments, SIZES), moments)
    for bits, error in errors(weights, first, moments).items():
        assert np.isclose(parts[bits], error, rtol=1e-3)  # products of other shapes round differently


def test_what_cannot_be_solved_is_refused() -> None:
    weights, moments = normal(4, 64), second_moments(64)
    with pytest.raises(InputError, match="second moments"):
        solve_nested_calibrated(weights, np.full((64, 64), np.nan, np.float32), SIZES)
    with pytest.raises(InputError):
        solve_nested_calibrated(weights * np.float32(np.inf), moments, SIZES)
    with pytest.raises(ValueError, match="expected one for each precision"):
        solve_nested_calibrated(weights, moments, {})
    with pytest.raises(ValueError, match="multiple of 32"):
        solve_nested_calibrated(weights, moments, {2: 33})
    with pytest.raises(ValueError, match="second_moments"):
        solve_nested_calibrated(weights, moments[:32, :32], SIZES)


def book(rows: int, offset: bool) -> tuple[NestedBook, list[NDArray[np.float64]], list[float]]:
    """A book of 1, 3 and 4 planes, its levels and shares."""
    bits, shares = (1, 3, 4), [1.0, 3.0, 20.0]
    coefficients = [normal(b + offset, rows, seed=b).astype(np.float64) for b in bits]
    levels = []
    for b, own in zip(bits, coefficients, strict=True):
        levels.append(all_signs(b) @ own[:b] + (own[b] if offset else 0))
    return nested_book(coefficients, bits, shares), levels, shares


def cost(levels: list[NDArray[np.float64]], shares: list[float], target: Array, code: int, row: int) -> float:
    terms = zip(levels, shares, target, strict=True)
    return float(sum(s * (own[code * len(own) // 16, row] - t[row]) ** 2 for own, s, t in terms))


@pytest.mark.parametrize("offset", [False, True])
def test_the_code_that_a_weight_takes_is_the_cheapest_of_all(offset: bool) -> None:
    made, levels, shares = book(20, offset)
    target = normal(3, 20, seed=9)
    values = made.nearest(target.ravel()).reshape(3, 20)
    codes = made.codes_of(values.reshape(1, -1))[0]
    for row in range(20):
        costs = [cost(levels, shares, target, code, row) for code in range(16)]
        assert np.isclose(costs[codes[row]], min(costs), rtol=1e-4)
        for place, own in enumerate(levels):
            assert np.isclose(values[place, row], own[codes[row] * len(own) // 16, row], rtol=1e-6)


def test_the_costs_of_feedback_are_those_of_each_code() -> None:
    made, levels, shares = book(5, False)
    weight, pull, diagonal = normal(5), normal(3, 2, 5, seed=4), np.float32(0.7)
    tried = made.tried(weight, pull, diagonal)
    assert tried.costs.shape == (16, 2, 5)
    for code, choice, row in itertools.product(range(16), range(2), range(5)):
        missed = [own[code * len(own) // 16, row] - weight[row] for own in levels]
        terms = [m * diagonal + p for m, p in zip(missed, pull[:, choice, row], strict=True)]
        assert np.isclose(tried.costs[code, choice, row], np.dot(shares, np.square(terms)), rtol=1e-4)
    kept = np.array([[7 * 10 + 1 * 5 + row for row in range(5)]])  # code 7 behind choice 1
    for place, own in enumerate(levels):
        assert np.allclose(tried.levels(kept)[place, 0], own[7 * len(own) // 16])
