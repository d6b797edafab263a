# SPDX-License-Identifier: Apache-2.0
"""float16 in the portable kernels converts as IEEE 754 says."""

from __future__ import annotations

import numpy as np

from bcq.bcq import BcqWeight, pack_bits
from bcq.kernels.core import Core
from bcq.packing import pack

CORE = Core.load()


def one_input(alpha: float) -> BcqWeight:
    """W = [[alpha]] of shape [1, 1]."""
    return BcqWeight(pack_bits(np.ones((1, 1, 1))), np.full((1, 1, 1), alpha, np.float16), None, 1, 1)


def test_every_half_survives_the_way_in_and_out_of_the_scalar_kernel() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    y = CORE.matmul(halves[:, None], pack(one_input(1.0)), kernel="scalar")[:, 0]
    finite = ~np.isnan(halves)
    # 0 + (-0) is +0 in every sum, so the sign of zero is the one thing that may change.
    assert (y[finite] == halves[finite]).all()
    assert np.isnan(y[~finite]).all()


def test_results_round_to_nearest_even_into_halves() -> None:
    # Products of two halves have 22 significant bits: exact in float32, on and between halves.
    random = np.random.default_rng(0)
    with np.errstate(over="ignore"):  # some values round to infinity, on both sides
        a = (random.standard_normal(20000) * random.choice([1e-6, 1e-3, 1, 300, 60000], 20000)).astype(
            np.float16
        )
        for alpha in (1.0009765625, 0.3331298828125, 0.0005, 1.5):
            expected = (a.astype(np.float32) * np.float32(np.float16(alpha))).astype(np.float16)
            y = CORE.matmul(a[:, None], pack(one_input(alpha)), kernel="scalar")[:, 0]
            finite = np.isfinite(a)
            assert (y[finite] == expected[finite]).all()
            assert not np.isfinite(y[~finite]).any()


def test_every_half_alpha_is_read_exactly() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    weight = BcqWeight(pack_bits(np.ones((1, halves.size, 1))), halves[None, :, None], None, 1, 1)
    y = CORE.gather(np.arange(halves.size), pack(weight))[:, 0]
    assert (y == halves.astype(np.float32)).all()
