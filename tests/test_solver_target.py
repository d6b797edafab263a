# SPDX-License-Identifier: Apache-2.0
"""Compensation: a matrix that makes up for what quantized layers before it did to its inputs."""

from __future__ import annotations

import numpy as np
import pytest

from bcq.errors import InputError
from bcq.solver import compensated
from bcq.solver.target import RIDGE


def test_outputs_are_nearer_to_those_of_the_float_model() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((8, 32), dtype=np.float32)
    meant = rng.standard_normal((400, 32), dtype=np.float32)
    came = meant @ (np.eye(32) + 0.1 * rng.standard_normal((32, 32))).astype(np.float32)
    moments, drift = came.T @ came / 400, (meant - came).T @ came / 400
    target = compensated(weights, moments, drift)
    wanted = meant @ weights.T
    before, after = (np.square(came @ matrix.T - wanted).mean() for matrix in (weights, target))
    # The inputs are a linear map of the true ones, so all of the error could go. A ridge d leaves d / (s + d)
    # of it along an eigenvector of the second moments with the eigenvalue s.
    ridge, least = RIDGE * moments.diagonal().mean(), np.linalg.eigvalsh(moments)[0]
    assert after < before * (ridge / (least + ridge)) ** 2


def test_inputs_that_are_not_off_change_nothing() -> None:
    weights = np.ones((2, 4), np.float32)
    moments = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(compensated(weights, moments, np.zeros((4, 4), np.float32)), weights)


def test_inputs_that_are_always_zero_change_nothing() -> None:
    weights, zero = np.ones((2, 4), np.float32), np.zeros((4, 4), np.float32)
    np.testing.assert_array_equal(compensated(weights, zero, zero), weights)


def test_a_drift_that_is_not_finite_is_refused_by_name() -> None:
    weights, moments = np.ones((2, 4), np.float32), np.eye(4, dtype=np.float32)
    with pytest.raises(InputError, match=r"h\.0: drift of its inputs: element \[1, 1\] is nan") as caught:
        compensated(weights, moments, np.diag([0, np.nan, 0, 0]).astype(np.float32), "h.0")
    assert caught.value.code == "E106"
