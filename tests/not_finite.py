# SPDX-License-Identifier: Apache-2.0
"""Activations and factors with infinities and NaN of both signs, and the one NaN that kernels may return."""

from __future__ import annotations

from typing import Any

import numpy as np

from bcq.packing import PackedWeight, pack
from nodes import Array, activations, random_weight

KINDS = (np.inf, -np.inf, np.nan, -np.nan)
INPUTS = 256


def poisoned_activations(tokens: int, inputs: int, dtype: Any = np.float32) -> Array:
    """``[tokens, inputs]``: rows with one or two infinities or NaNs of either sign, and clean ones."""
    a = activations(tokens, inputs, dtype)
    for row in range(tokens):
        first, second = row % 7, (row + 2) % 7
        if first < len(KINDS):
            a[row, (37 * row) % inputs] = KINDS[first]
        if row % 2 and second < len(KINDS):
            a[row, (11 * row + 5) % inputs] = KINDS[second]
    return a


def poisoned_weight(bits: int, rows: int = 40, inputs: int = INPUTS) -> PackedWeight:
    """A matrix whose outputs meet infinities and NaN of both signs among factors of one or more groups."""
    weight = pack(random_weight(rows, inputs, bits, 64, offset=True))
    fields = [tensor for tensor in (weight.alpha_1, weight.alpha_rest, weight.offset) if tensor is not None]
    random = np.random.default_rng(bits)
    for tensor in fields:
        spoilt = random.random(tensor.shape) < 0.05
        tensor[spoilt] = random.choice(np.array(KINDS, np.float16), int(spoilt.sum()))
    for tensor in fields:  # padding stays zero
        tensor[-1, ..., rows % 16 or 16 :] = 0
    return weight


def assert_one_nan(y: Array) -> None:
    """Every NaN of ``y`` is positive, quiet and without a payload, and there is one."""
    found = y[np.isnan(y)]
    assert found.size
    bits, expected = (np.uint16, 0x7E00) if y.dtype == np.float16 else (np.uint32, 0x7FC00000)
    assert (found.view(bits) == expected).all()
