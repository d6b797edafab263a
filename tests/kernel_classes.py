# SPDX-License-Identifier: Apache-2.0
"""What each BcqMatMul kernel promises: the accuracy level that selects it, and its largest error."""

from __future__ import annotations

import numpy as np

from bcq.bcq import BcqWeight
from nodes import Array, magnitudes, product

TABLE_RANGE = {"t16": 127 * 255 - 1, "t8": 127}  # largest magnitude of a table entry


def method(kernel: str) -> str:
    """``t16``, ``t8``, ``exact`` or ``scalar``."""
    return kernel.rsplit("_", 1)[-1]


def level(kernel: str) -> int:
    """An accuracy level that the kernel takes."""
    return {"t8": 4, "exact": 1}.get(method(kernel), 0)


def tolerance(kernel: str, a: Array, weight: BcqWeight) -> Array:
    """Largest error of a kernel per output, ``[M, N]``."""
    bound = _rounded_tables(kernel, a, weight) + _float32_sums(kernel, a, weight)
    if a.dtype == np.float16:
        bound = bound + 2.0**-11 * np.abs(product(a, weight)) + 2.0**-25  # the result is rounded once
    return np.asarray(bound)


def bound_of_level(kernel: str) -> float:
    """The bound of ops/README.md, in units of sum |a| (sum |alpha| + |offset|)."""
    return 0.13 if method(kernel) == "t8" else 5e-4


def relative_error(kernel: str) -> float:
    """The root mean square error that ops/README.md gives for random data with outliers."""
    return 1.5e-2 if method(kernel) == "t8" else 1e-4


def _rounded_tables(kernel: str, a: Array, weight: BcqWeight) -> Array:
    """What rounding the tables of a look-up kernel costs.

    A table rounds every signed sum of four activations to a multiple of s = m / range, where m is the largest
    sum of four |a|, at most 4 max|a|. Half of s per quad, over its four inputs, is at most max|a| / (2 range)
    per input and plane; 1.1 leaves room for the roundings of s itself.
    """
    reach = TABLE_RANGE.get(method(kernel))
    if reach is None:
        return np.zeros(())
    largest = np.abs(a.astype(np.float64)).max(axis=1, initial=0.0)[:, None]
    return 1.1 / (2 * reach) * magnitudes(np.broadcast_to(largest, a.shape), weight)


def _float32_sums(kernel: str, a: Array, weight: BcqWeight) -> Array:
    """Float32 sums of 32 terms and the groups' partial results: below 64 roundings. Exact kernels and the
    specification add up K products in any order: K roundings, and those of the weight itself."""
    roundings = 64 if method(kernel) in TABLE_RANGE else weight.inputs + 2 * weight.bits + 2
    return roundings * 2.0**-24 * magnitudes(a, weight)
