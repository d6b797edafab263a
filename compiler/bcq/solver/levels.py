# SPDX-License-Identifier: Apache-2.0
"""The levels that q alphas can reach: sign tables, and the order that a solution is stored in.

Coefficients are float64 ``[R, q]`` (alphas) or ``[R, q + 1]`` (alphas, then the offset) for R groups. Without
an offset the levels lie symmetric about zero, so only the half with a positive first sign is listed
("folded") and the other half follows by mirroring.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class SignTable:
    """Sign combinations of q planes.

    Attributes:
        bits: q.
        offset: whether a last column of ones multiplies an offset.
        signs: float64 ``[L, q]`` or ``[L, q + 1]`` of -1 and +1; row l holds the binary digits of its index,
            plane 1 first, 1 for +1. L = 2^q with an offset; without, the 2^(q-1) rows whose first sign is +1.
    """

    bits: int
    offset: bool
    signs: Float64

    def levels(self, coefficients: Float64) -> Float64:
        """What each sign combination adds up to, ``[R, L]``, summed in a fixed order."""
        result: Float64 = np.einsum("rp,lp->rl", coefficients, self.signs)
        return result


def sign_table(bits: int, offset: bool) -> SignTable:
    """The table of ``bits`` planes; see :class:`SignTable`."""
    signs = all_signs(bits)
    if offset:
        return SignTable(bits, True, np.hstack([signs, np.ones((len(signs), 1))]))
    return SignTable(bits, False, signs[len(signs) // 2 :])


def all_signs(bits: int) -> Float64:
    """float64 ``[2^q, q]``: row l is the binary digits of l, plane 1 first, as -1 and +1."""
    shifts = np.arange(bits - 1, -1, -1)
    bits_of = (np.arange(2**bits)[:, None] >> shifts) & 1
    return (2 * bits_of - 1).astype(np.float64)


def ordered(coefficients: Float64, bits: int) -> Float64:
    """The same levels with alphas that are not negative and fall: planes stand in order of importance."""
    result: Float64 = coefficients.copy()
    result[:, :bits] = -np.sort(-np.abs(coefficients[:, :bits]), axis=1)
    return result


def as_stored(coefficients: Float64) -> Float64:
    """Rounded to float16, as a file holds them; what float16 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        half: NDArray[np.float16] = coefficients.astype(np.float16)
    return half.astype(np.float64)
