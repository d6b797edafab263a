# SPDX-License-Identifier: Apache-2.0
"""BCQ back to an integer grid, where its factors are one: the reverse of `factors.Scales.of_grid`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import BcqWeight, ceil_div, pack_bits, unpack_bits
from bcq.errors import UnsupportedError
from bcq.importers.factors import Float64
from bcq.importers.fields import pack_fields, values_of

NBITS = (2, 4, 8)  # what MatMulNBits stores
_FLOAT_ZEROS = (2, 4)  # bits for which onnxruntime takes zero-points that are no integers
_MOST_INPUTS = 256  # of a block
_LEAST_INPUTS = 16


@dataclass(frozen=True)
class Blocks:
    """A grid as MatMulNBits stores it.

    Attributes:
        bits: 2, 4 or 8.
        block_size: inputs of a block, a power of two.
        scales: float64 ``[N, B]``.
        zeros: what `zero_points` holds: uint8 fields, or numbers; None for 2^(bits-1) everywhere.
    """

    bits: int
    block_size: int
    scales: Float64
    zeros: NDArray[Any] | None


def blocks_of(weight: BcqWeight, who: str, dtype: type[np.floating[Any]]) -> Blocks:
    """The grid that a weight is.

    Args:
        weight: any BCQ weight; a last plane of ones counts as a part of the offset.
        who: the node, for errors.
        dtype: type of the activations, which scales and fractional zero-points must fit.

    Raises:
        UnsupportedError: E403 when its factors are no integer grid, with the first place that shows it.
    """
    scales, zeros = _grid(weight, who)
    bits = next(bits for bits in NBITS if bits >= weight.bits - _constant_planes(weight))
    block = block_size(weight.group_size, weight.inputs)
    group_of = np.arange(ceil_div(weight.inputs, block)) * block // weight.group_size
    scales, zeros = scales[:, group_of], zeros[:, group_of]
    _check_fits(scales, dtype, who, "scale")
    if (zeros == 2 ** (bits - 1)).all():
        return Blocks(bits, block, scales, None)
    if (zeros == np.rint(zeros)).all() and zeros.min() >= 0 and zeros.max() < 2**bits:
        return Blocks(bits, block, scales, pack_fields(zeros.astype(np.uint8), bits))
    if bits not in _FLOAT_ZEROS:
        raise _no_grid(who, f"the zero-point {_first_odd(zeros, bits)} is no integer from 0 to {2**bits - 1}")
    _check_fits(zeros, dtype, who, "zero-point")
    return Blocks(bits, block, scales, zeros.astype(dtype))


def levels_of(weight: BcqWeight, blocks: Blocks) -> NDArray[np.uint8]:
    """The levels as MatMulNBits stores them, uint8 ``[N, B, block_size bits / 8]``."""
    planes = weight.words[: weight.bits - _constant_planes(weight)]
    values = values_of(unpack_bits(planes, weight.inputs))
    padding = blocks.scales.shape[1] * blocks.block_size - weight.inputs
    padded = np.pad(values, ((0, 0), (0, padding))).reshape(weight.rows, -1, blocks.block_size)
    return pack_fields(padded, blocks.bits)


def block_size(group_size: int, inputs: int) -> int:
    """The largest block that no group ends in: a power of two from 16 to 256."""
    if group_size < inputs:
        return min(_MOST_INPUTS, group_size & -group_size)
    return min(_MOST_INPUTS, max(_LEAST_INPUTS, 1 << (inputs - 1).bit_length()))


def _constant_planes(weight: BcqWeight) -> int:
    """1 when the last plane is +1 everywhere, as `factors.PLANE` makes it; else 0."""
    ones = pack_bits(np.ones((1, weight.inputs), np.uint8))
    return int(weight.bits > 1 and bool((weight.words[-1] == ones).all()))


def _grid(weight: BcqWeight, who: str) -> tuple[Float64, Float64]:
    """Step s and zero-point z of every group, ``[N, G]``."""
    factors, planes = weight.alpha.astype(np.float64), weight.bits - _constant_planes(weight)
    alpha, offset = factors[:planes], factors[planes:].sum(axis=0)
    if weight.offset is not None:
        offset = offset + weight.offset.astype(np.float64)
    _check_halves(alpha, who)
    steps, middle = 2 * alpha[-1], (2**planes - 1) / 2
    apart = np.divide(offset, steps, out=np.full_like(steps, -0.5), where=steps != 0)
    zeros = middle - apart
    off = ~np.isfinite(offset) | (steps * (middle - zeros) != offset) & ((steps != 0) | (offset != 0))
    if off.any():
        row, group = np.argwhere(off)[0]
        raise _no_grid(
            who,
            f"output {row}, group {group} has an offset of {offset[row, group]:.6g}, "
            f"which no zero-point makes of its step {steps[row, group]:.6g}",
        )
    return steps, zeros


def _check_halves(alpha: Float64, who: str) -> None:
    """Each plane has half the factor of the one before."""
    powers = np.ldexp(alpha[-1], np.arange(len(alpha))[::-1, None, None])
    off = ~np.isfinite(alpha) | (alpha != powers)
    if off.any():
        row, group = np.argwhere(off.any(axis=0))[0]
        shown = ", ".join(f"{value:.6g}" for value in alpha[:, row, group])
        raise _no_grid(
            who, f"output {row}, group {group} has the alphas {shown}, which do not halve each time"
        )


def _check_fits(values: Float64, dtype: type[np.floating[Any]], who: str, what: str) -> None:
    with np.errstate(over="ignore"):
        off = values.astype(dtype) != values
    if off.any():
        value = values[tuple(np.argwhere(off)[0])]
        raise _no_grid(who, f"the {what} {value!r} is not exact in {np.dtype(dtype).name}")


def _first_odd(zeros: Float64, bits: int) -> float:
    return float(zeros[(zeros != np.rint(zeros)) | (zeros < 0) | (zeros >= 2**bits)].flat[0])


def _no_grid(who: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        "E403",
        f"{who} is no integer grid: {reason}.",
        "Only weights that came from one, or method 'uniform' without offsets, go back.",
    )
