# SPDX-License-Identifier: Apache-2.0
"""Solvers: floors of quality, guarantees against round-to-nearest, odd shapes and odd values."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bcq.errors import InputError
from bcq.matrices.plan import METHODS
from bcq.solver import relative_error, solve

Float32 = NDArray[np.float32]

# Relative errors that multi-start reaches on g = 128: (distribution, offset) -> q = 2, 3, 4.
FLOORS = {
    ("normal", False): (0.1141, 0.0338, 0.0092),
    ("normal", True): (0.1086, 0.0312, 0.0086),
    ("t5", False): (0.1662, 0.0521, 0.0154),
    ("t5", True): (0.1572, 0.0481, 0.0142),
}


def draw(kind: str, rows: int, inputs: int) -> Float32:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((rows, inputs)) if kind == "normal" else rng.standard_t(5, (rows, inputs))
    return dense.astype(np.float32)


@pytest.mark.parametrize(("kind", "offset"), list(FLOORS))
def test_the_default_reaches_the_known_errors_and_falls_with_bits(kind: str, offset: bool) -> None:
    dense = draw(kind, 256, 256)  # 512 groups
    errors = [relative_error(dense, solve(dense, bits, 128, offset=offset)) for bits in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    # The error of a group of t5 scatters by about 30 % of itself (heavy tails), of N(0, 1) by about 10 %: the
    # mean of 512 groups by 1.4 % and 0.5 %. Three standard deviations of it are allowed.
    margin = 1.042 if kind == "t5" else 1.015
    for got, floor in zip(errors[1:], FLOORS[kind, offset], strict=True):
        assert got <= floor * margin


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["normal", "t5"])
def test_the_default_beats_greedy_alternating_and_clipped_rounding(
    kind: str, bits: int, offset: bool
) -> None:
    dense = draw(kind, 32, 256)
    errors = {method: relative_error(dense, solve(dense, bits, 128, method, offset)) for method in METHODS}
    assert errors["multistart"] == min(errors.values())
    # Alternating starts from greedy and no half-step raises the error; storing as float16 moves each alpha by
    # 2^-11 of itself, which is 2^-22 of the squared weights.
    assert errors["alternating"] <= errors["greedy"] + bits * 2**-22


WEIGHTS = st.tuples(st.integers(1, 6), st.integers(1, 80), st.integers(0, 2**31), st.sampled_from(range(6)))


def odd_weights(rows: int, inputs: int, seed: int, kind: int) -> Float32:
    rng = np.random.default_rng(seed)
    dense = [
        rng.standard_normal((rows, inputs)),
        np.zeros((rows, inputs)),
        np.full((rows, inputs), 0.37),
        rng.integers(-1, 2, (rows, inputs)) * 0.5,
        rng.standard_normal((rows, inputs)) * 1e-9,
        rng.standard_normal((rows, inputs)) ** 9,
    ][kind]
    if kind >= 4:
        dense[0, 0] = 1.0  # a matrix of tiny weights alone is refused
    return dense.astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(1, 5), st.booleans(), st.sampled_from([32, 64, 0]))
def test_no_group_is_worse_than_clipped_rounding(
    shape: tuple[int, int, int, int], bits: int, offset: bool, group_size: int
) -> None:
    dense = odd_weights(*shape)
    width = group_size or dense.shape[1]
    found = solve(dense, bits, width, "multistart", offset)
    uniform = solve(dense, bits, width, "uniform", offset)
    for begin in range(0, dense.shape[1], width):
        part = slice(begin, begin + width)
        exact = dense[:, part].astype(np.float64)
        got = np.square(found.dequantize()[:, part] - exact).sum(axis=1)
        bound = np.square(uniform.dequantize()[:, part] - exact).sum(axis=1)
        # Both errors are sums over at most 80 weights, read back through float32 additions (2^-23 each).
        assert (got <= bound + 80 * np.square(exact).max() * 2**-22 + 1e-30).all()


@settings(max_examples=20, deadline=None)
@given(WEIGHTS, st.integers(1, 6), st.booleans())
def test_alphas_are_finite_not_negative_and_fall(
    shape: tuple[int, int, int, int], bits: int, offset: bool
) -> None:
    alpha = solve(odd_weights(*shape), bits, 32, "multistart", offset).alpha
    assert np.isfinite(alpha).all()
    assert (alpha >= 0).all()
    assert (np.diff(alpha.astype(np.float32), axis=0) <= 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_every_weight_has_its_nearest_level(method: str, bits: int) -> None:
    dense = draw("normal", 3, 70)
    solved = solve(dense, bits, 32, method, offset=True)
    assert solved.offset is not None
    signs = np.array([[1 - 2 * (level >> plane & 1) for plane in range(bits)] for level in range(2**bits)])
    for row, k in np.ndindex(dense.shape):
        alpha = solved.alpha[:, row, k // 32].astype(np.float64)
        levels = signs @ alpha + float(solved.offset[row, k // 32])
        nearest = np.abs(levels - dense[row, k]).min()
        got = abs(float(solved.dequantize()[row, k]) - float(dense[row, k]))
        # Float32 sums of at most nine numbers below 8.
        assert got <= nearest + 2**-20


def test_zero_rows_and_constant_rows_cost_nothing() -> None:
    dense = np.zeros((4, 64), np.float32)
    dense[1] = 0.5
    dense[2] = -0.25
    for bits in (1, 3):
        assert relative_error(dense, solve(dense, bits, 32)) == 0.0


def test_more_planes_than_values_is_exact_up_to_float16() -> None:
    dense = np.array([[1.0, -2.0, 4.0, 0.5] * 8], np.float32)
    assert relative_error(dense, solve(dense, 8, 32)) < 1e-4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    dense = draw("normal", 4, 64)
    dense[2, 5] = value
    with pytest.raises(InputError, match=r"h\.0\.weight: element \[2, 5\]") as caught:
        solve(dense, 3, 32, name="h.0.weight")
    assert caught.value.code == "E106"


def test_a_weight_beyond_float16_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"h\.0\.weight: a weight is too large") as caught:
        solve(np.full((2, 32), 3e38, np.float32), 2, 32, name="h.0.weight")
    assert caught.value.code == "E106"


def test_the_result_does_not_depend_on_threads_or_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("bcq.solver.solve")
    monkeypatch.setattr(module, "BLOCK_WEIGHTS", 1 << 11)  # five blocks
    dense = draw("t5", 96, 96)
    results = []
    for workers in (1, 2, 4, 1):
        monkeypatch.setattr(module, "_workers", lambda workers=workers: workers)
        results.append(solve(dense, 2, 64))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].words, other.words)
        np.testing.assert_array_equal(results[0].alpha, other.alpha)


def test_a_transposed_view_is_solved_like_its_copy() -> None:
    dense = draw("normal", 64, 32)
    view, copied = solve(dense.T, 2, 32), solve(np.ascontiguousarray(dense.T), 2, 32)
    np.testing.assert_array_equal(view.words, copied.words)


@pytest.mark.parametrize(("scale", "offset"), [(1e-8, False), (1e-8, True), (1e-5, False)])
def test_weights_too_small_for_float16_are_refused_by_name(scale: float, offset: bool) -> None:
    dense = np.random.default_rng(0).standard_normal((32, 64), dtype=np.float32) * np.float32(scale)
    with pytest.raises(InputError, match=r"tiny.*too small") as caught:
        solve(dense, 3, 32, offset=offset, name="tiny")
    assert caught.value.code == "E106"
    assert "tiny=keep" in caught.value.hint


def test_zeros_and_a_constant_are_not_too_small() -> None:
    assert not solve(np.zeros((16, 32), np.float32), 2, 32).alpha.any()
    solve(np.full((16, 32), 0.5, np.float32), 2, 32, offset=True)
