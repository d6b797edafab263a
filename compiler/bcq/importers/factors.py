# SPDX-License-Identifier: Apache-2.0
"""Factors of other formats as float16 alphas and offsets: exact, with one plane more, rounded, or refused.

An integer grid has the levels (v - z) s for v = 0 .. 2^q - 1. With v = sum_j b_j 2^j and B_j = 2 b_j - 1,

    (v - z) s = sum_j s 2^(j-1) B_j  +  s ((2^q - 1) / 2 - z)

so bit j of v is a plane with alpha = s 2^(j-1), and the rest is the offset. Powers of two do not round, so
the alphas are exact when s is a float16 number whose half and whose 2^(q-2)-fold are in range. The offset is
s times a multiple of one half: exact for z = 2^(q-1), the symmetric case, where it is -s / 2, and for other z
only when the product fits into 11 bits. Where it does not, its rounding error does (s has 11 bits, the
multiple q + 1), so one constant plane more, with that error as its alpha, makes it exact again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bcq import contract
from bcq.bcq import BcqWeight, Float16, Words, pack_bits, unpack_bits
from bcq.errors import InputError, UnsupportedError, UsageError

REFUSE, PLANE, ROUND = "refuse", "plane", "round"
INEXACT = (REFUSE, PLANE, ROUND)  # what to do where float16 factors cannot hold a grid
Float64 = NDArray[np.float64]
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Scales:
    """The factors of one matrix as its format means them, in float64, which holds them without rounding.

    Attributes:
        alpha: ``[q, N, G]``.
        offset: ``[N, G]``.
    """

    alpha: Float64
    offset: Float64

    @property
    def steps(self) -> Float64:
        """The smallest distance of two levels that differ in one plane, ``[N, G]``."""
        smallest: Float64 = 2 * np.abs(self.alpha).min(axis=0)
        return smallest

    @classmethod
    def of_grid(cls, scales: NDArray[np.floating], zeros: NDArray[np.number], bits: int) -> Scales:
        """The factors of an integer grid; the most significant bit becomes plane 1.

        Args:
            scales: s, ``[N, G]``.
            zeros: z, ``[N, G]``, integers or not.
            bits: q.
        """
        step = scales.astype(np.float64)
        alpha = np.stack([np.ldexp(step, bits - 2 - plane) for plane in range(bits)])
        return cls(alpha, step * ((2**bits - 1) / 2 - zeros.astype(np.float64)))


@dataclass(frozen=True)
class Factors:
    """Scales in float16.

    Attributes:
        alpha: float16 ``[q, N, G]``, or ``[q + 1, N, G]`` with the factors of a constant plane at the end.
        offset: float16 ``[N, G]``; None when it is zero everywhere.
        bits: q, the planes that the source has.
        rounded: groups whose factors were rounded; 0 when the weight is exact.
        worst: largest error of a level, in steps of its group; 0 when the weight is exact.
    """

    alpha: Float16
    offset: Float16 | None
    bits: int
    rounded: int = 0
    worst: float = 0.0

    @property
    def planes(self) -> int:
        """Planes of the result."""
        return int(self.alpha.shape[0])

    def weight(self, words: Words, inputs: int, group_size: int) -> BcqWeight:
        """The matrix of these factors.

        Args:
            words: uint32 ``[bits, N, ceil(K / 32)]``, the planes of the source.
            inputs: K.
            group_size: g.
        """
        if self.planes > self.bits:
            ones = pack_bits(np.ones((1, words.shape[1], inputs), np.uint8))
            words = np.concatenate([words, ones])
        return BcqWeight(words, self.alpha, self.offset, inputs, group_size)


def factors_of(scales: Scales, name: str, inexact: str = REFUSE) -> Factors:
    """Turns scales into float16 factors.

    Args:
        scales: as the source means them.
        name: of the matrix, for errors.
        inexact: one of `INEXACT`: what to do where float16 cannot hold them.

    Raises:
        InputError: E106 when a scale or an offset is NaN or infinite.
        UnsupportedError: E403 when float16 cannot hold them and `inexact` does not allow for that.
        UsageError: E202 for an unknown `inexact`.
    """
    if inexact not in INEXACT:
        raise UsageError("E202", f"inexact: got {inexact!r}, expected one of {', '.join(INEXACT)}.")
    _check_finite(scales, name)
    with np.errstate(over="ignore"):
        alpha, offset = scales.alpha.astype(np.float16), scales.offset.astype(np.float16)
    _check_range(scales, alpha, offset, name)
    bits = len(alpha)
    kept = offset if offset.any() else None
    left_alpha = np.abs(scales.alpha - alpha).sum(axis=0)
    left_offset = scales.offset - offset
    off = (left_alpha > 0) | (left_offset != 0)
    if not off.any():
        return Factors(alpha, kept, bits)
    rounded, worst = int(off.sum()), _worst(left_alpha + np.abs(left_offset), scales.steps)
    if inexact == ROUND:
        return Factors(alpha, kept, bits, rounded, worst)
    plane = left_offset.astype(np.float16)
    fits = not left_alpha.any() and bool((plane == left_offset).all()) and bits < contract.MAX_BITS
    if inexact == PLANE and fits:
        return Factors(np.concatenate([alpha, plane[None]]), kept, bits)
    raise _not_exact(name, off, worst, fits)


def relative_error(words: Words, scales: Scales, weight: BcqWeight) -> float:
    """Sum of squared errors of a rounded weight over the sum of its squared true values.

    Args:
        words: the planes of the source.
        scales: its true factors.
        weight: what was made of it.
    """
    group_of = np.arange(weight.inputs) // weight.group_size
    missed = size = 0.0
    for start in range(0, weight.rows, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        signs = unpack_bits(words[:, rows], weight.inputs).astype(np.float64) * 2 - 1
        true = (scales.alpha[:, rows][:, :, group_of] * signs).sum(axis=0) + scales.offset[rows][:, group_of]
        offset = None if weight.offset is None else weight.offset[rows]
        part = BcqWeight(
            weight.words[:, rows], weight.alpha[:, rows], offset, weight.inputs, weight.group_size
        )
        missed += float(np.square(true - part.dequantize()).sum())
        size += float(np.square(true).sum())
    return missed / size if size else 0.0


def _check_finite(scales: Scales, name: str) -> None:
    for what, values in (("scale", scales.alpha), ("offset", scales.offset)):
        bad = ~np.isfinite(values)
        if bad.any():
            row, group = (int(index) for index in np.argwhere(bad)[0][-2:])
            raise InputError(
                "E106",
                f"'{name}' has a {what} that is NaN or infinite, at output {row}, group {group}.",
                "The checkpoint is damaged: copy it again, or quantize the model again.",
            )


def _check_range(scales: Scales, alpha: Float16, offset: Float16, name: str) -> None:
    for what, values, true in (("alpha", alpha, scales.alpha), ("offset", offset, scales.offset)):
        bad = np.isinf(values)
        if bad.any():
            place = np.argwhere(bad)[0]
            raise UnsupportedError(
                "E403",
                f"'{name}', output {place[-2]}, group {place[-1]}: the {what} is {true[tuple(place)]:.6g}, "
                "beyond the largest float16 number, 65504.",
                "Quantize the dense model with `bcq quantize`.",
            )


def _worst(errors: Float64, steps: Float64) -> float:
    """Largest error in steps; infinite where a group whose levels are all equal is not met."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(errors > 0, errors / steps, 0.0).max())


def _not_exact(name: str, off: NDArray[np.bool_], worst: float, fits: bool) -> UnsupportedError:
    row, group = (int(index) for index in np.argwhere(off)[0])
    hint = (
        "Store what is left as one plane more (--inexact plane: exact, 1 bit a weight), or round"
        if fits
        else "Round"
    )
    return UnsupportedError(
        "E403",
        f"'{name}': float16 factors cannot hold {off.sum():,} of {off.size:,} groups exactly, first output "
        f"{row}, group {group}; rounded, a weight moves by up to {worst:.2g} of a quantization step.",
        f"{hint} (--inexact round).",
    )
