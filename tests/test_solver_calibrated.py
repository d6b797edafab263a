# SPDX-License-Identifier: Apache-2.0
"""The calibrated solver: better than data-free under second moments, never worse, and sound at the edges."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has no annotations

from bcq.bcq import BcqWeight, pack_bits
from bcq.errors import InputError
from bcq.solver import calibrated_error, solve, solve_calibrated

Float32 = NDArray[np.float32]


def draw(rows: int, inputs: int, seed: int = 0) -> tuple[Float32, Float32]:
    """Weights, and second moments of inputs that depend on each other, as those of real layers do."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, inputs), dtype=np.float32)
    mix = rng.standard_normal((inputs, inputs)) * np.exp(-np.arange(inputs) / inputs * 4)
    data = rng.standard_normal((4 * inputs, inputs)) @ mix.T
    return weights, (data.T @ data / len(data)).astype(np.float32)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_calibrated_error_is_at_most_two_thirds_of_the_data_free_one(bits: int, offset: bool) -> None:
    weights, moments = draw(64, 128)
    plain = calibrated_error(weights, solve(weights, bits, 64, offset=offset), moments)
    found = calibrated_error(weights, solve_calibrated(weights, moments, bits, 64, offset), moments)
    assert found < plain * 2 / 3  # here it is between .1 and .5: the eigenvalues span four orders of size


@pytest.mark.parametrize(
    ("rows", "inputs", "group_size"),
    [(1, 1, 1), (1, 33, 32), (3, 70, 32), (2, 70, 70), (5, 100, 64), (40, 31, 31), (2, 160, 256)],
)
@pytest.mark.parametrize("offset", [False, True])
def test_no_row_is_worse_than_data_free_whatever_the_shape(
    rows: int, inputs: int, group_size: int, offset: bool
) -> None:
    weights, moments = draw(rows, inputs)
    plain = solve(weights, 2, group_size, offset=offset)
    found = solve_calibrated(weights, moments, 2, group_size, offset)
    assert (found.inputs, found.group_size, found.rows) == (inputs, group_size, rows)
    assert np.isfinite(found.dequantize()).all()
    # Both are sums in float64 over float32 differences; chosen by the same sums, in blocks of other sizes.
    assert (errors(weights, found, moments) <= errors(weights, plain, moments) * (1 + 1e-9)).all()


def errors(weights: Float32, solved: BcqWeight, moments: Float32) -> NDArray[np.float64]:
    difference = solved.dequantize().astype(np.float64) - weights
    result: NDArray[np.float64] = np.einsum("nk,kl,nl->n", difference, moments.astype(np.float64), difference)
    return result


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_number_of_planes_works_and_alphas_are_finite_not_negative_and_fall(bits: int) -> None:
    weights, moments = draw(6, 64)
    alpha = solve_calibrated(weights, moments, bits, 32, offset=bits % 2 == 0).alpha
    assert np.isfinite(alpha).all()
    assert (alpha >= 0).all()
    assert (np.diff(alpha.astype(np.float32), axis=0) <= 0).all()


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_a_matrix_that_is_a_binary_code_comes_back_exactly(bits: int) -> None:
    rng = np.random.default_rng(bits)
    alpha = (2.0 ** -np.arange(bits))[:, None, None] * rng.uniform(1, 1.5, (1, 8, 2))
    words = pack_bits(rng.integers(0, 2, (bits, 8, 128)))
    exact = BcqWeight(words, alpha.astype(np.float16), None, 128, 64)
    weights, moments = exact.dequantize(), draw(8, 128)[1]
    found = solve_calibrated(weights, moments, bits, 64)
    # Alphas fitted in float64 to levels summed in float32 may round to a float16 neighbour of the true ones.
    np.testing.assert_allclose(found.dequantize(), weights, rtol=0, atol=2.0**-9)


def test_inputs_that_are_never_used_keep_weights_near_their_own() -> None:
    weights, moments = draw(16, 128)
    moments[:, 40:70] = moments[40:70] = 0
    found = solve_calibrated(weights, moments, 3, 64).dequantize()
    dead, plain = slice(40, 70), solve(weights, 3, 64).dequantize()
    # They follow alphas that were chosen for others: more error than data-free, but of its order.
    assert np.square(found - weights)[:, dead].mean() < 10 * np.square(plain - weights)[:, dead].mean()


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_second_moments_of_few_or_no_samples_are_no_problem(rank: int) -> None:
    weights = draw(8, 96)[0]
    data = np.random.default_rng(1).standard_normal((rank, 96), dtype=np.float32)
    moments = data.T @ data / np.float32(max(rank, 1))
    plain, found = solve(weights, 2, 32), solve_calibrated(weights, moments, 2, 32)
    assert calibrated_error(weights, found, moments) <= calibrated_error(weights, plain, moments)
    assert np.isfinite(found.dequantize()).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_second_moments_does_not_matter(scale: float) -> None:
    weights, moments = draw(4, 64)
    one, other = (solve_calibrated(weights, moments * np.float32(s), 2, 32) for s in (1.0, scale))
    ratio = calibrated_error(weights, other, moments) / calibrated_error(weights, one, moments)
    assert 0.8 < ratio < 1.25  # scaling rounds, and a rounding may lead to another local minimum


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_second_moment_that_is_not_finite_is_refused_by_name(value: float) -> None:
    weights, moments = draw(4, 64)
    moments[3, 7] = value
    with pytest.raises(InputError, match=r"h\.0\.weight: second moments.*\[3, 7\] is") as caught:
        solve_calibrated(weights, moments, 2, 32, name="h.0.weight")
    assert caught.value.code == "E106"
    with pytest.raises(InputError):
        calibrated_error(weights, solve(weights, 2, 32), moments)


def test_a_negative_square_is_refused() -> None:
    weights, moments = draw(4, 64)
    moments[5, 5] = -1
    with pytest.raises(InputError, match=r"\[5, 5\] is -1.0.*none below zero"):
        solve_calibrated(weights, moments, 2, 32)


def test_second_moments_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"second_moments: got \[32, 32\], expected \[64, 64\]"):
        solve_calibrated(draw(4, 64)[0], draw(4, 32)[1], 2, 32)


@pytest.mark.parametrize(
    ("factor", "message"), [(3e38, "too large"), (1e-8, "too small"), (np.nan, "expected finite weights")]
)
def test_weights_that_float16_alphas_cannot_hold_are_refused(factor: float, message: str) -> None:
    weights, moments = np.full((4, 64), factor, np.float32), draw(4, 64)[1]
    with pytest.raises(InputError, match=message) as caught:
        solve_calibrated(weights, moments, 2, 32)
    assert caught.value.code == "E106"


def test_the_result_does_not_depend_on_threads_or_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("bcq.solver.calibrated")
    monkeypatch.setattr(module, "BLOCK_WEIGHTS", 1 << 12)  # three blocks
    weights, moments = draw(80, 128)
    results = []
    for threads in (1, 2, 3, 1):
        with threadpool_limits(threads):
            results.append(solve_calibrated(weights, moments, 2, 64, offset=True))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].words, other.words)
        np.testing.assert_array_equal(results[0].alpha, other.alpha)
        np.testing.assert_array_equal(results[0].offset, other.offset)
