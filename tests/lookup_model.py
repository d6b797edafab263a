# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the look-up kernels in NumPy, to the bit: what every ISA must give.

Every float32 operation of the kernels is one NumPy operation here; a fused multiply-add is done in float64
and rounded once (see `fma`). Sums of table entries are integers, so their order does not matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import BcqWeight, ceil_div, unpack_bits
from nodes import Array

Float32 = NDArray[np.float32]
RANGE = {"t16": 127 * 255 - 1, "t8": 127}  # largest magnitude of a table entry
WORD = 32
BLOCK = 128
SMALLEST_SCALED = np.float32(2.0**-100)  # a block below counts as zero
SIGNS = np.array([[1 if n >> j & 1 else -1 for j in range(4)] for n in range(16)], np.float32)


def fma(a: Array, b: Array, c: Array) -> Float32:
    """a * b + c of float32 values with one rounding, where a has at most 24 and b at most 24 bits.

    The product is exact in float64. The sum is rounded to odd in float64, whose 53 bits are at least two more
    than float32 has, so that rounding it again gives the correctly rounded result.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.copysign(np.inf, lost))
    return np.where((lost != 0) & even, odd, total).astype(np.float32)


def blocks(inputs: int, group_size: int) -> list[tuple[int, int, int]]:
    """(group, first input, end) of every block: up to 128 inputs of one group, ends padded to 32."""
    padded = ceil_div(inputs, WORD) * WORD
    found = []
    for group in range(ceil_div(inputs, group_size)):
        end = padded if group_size >= inputs else min((group + 1) * group_size, padded)
        for first in range(group * group_size, end, BLOCK):
            found.append((group, first, min(first + BLOCK, end)))
    return found


def entries(x: Float32, reach: int) -> tuple[NDArray[np.int64], Float32]:
    """Tables [M, quads, 16] of one block [M, inputs], and their scale [M]."""
    quads = x.reshape(len(x), -1, 4)
    size = np.abs(quads)
    most = ((size[..., 0] + size[..., 1]) + (size[..., 2] + size[..., 3])).max(axis=1)
    used = most >= SMALLEST_SCALED
    safe = np.where(used, most, np.float32(1))
    scale = np.where(used, safe / np.float32(reach), np.float32(0))
    inverse = np.where(used, np.float32(reach) / safe, np.float32(0))
    signed = (quads * inverse[:, None, None])[:, :, None, :] * SIGNS
    total = ((signed[..., 0] + signed[..., 1]) + signed[..., 3]) + signed[..., 2]
    return np.rint(total).astype(np.int64), scale


def block_sums(x: Float32) -> Float32:
    """Sums [M] of the activations of one block, in the kernels' order: eight running sums, added in pairs."""
    running = np.zeros((len(x), 8), np.float32)
    for eight in np.split(x, x.shape[1] // 8, axis=1):
        running = running + eight
    four = running[:, :4] + running[:, 4:]
    two = four[:, :2] + four[:, 2:]
    return np.asarray(two[:, 0] + two[:, 1])


def look_up(a: Array, weight: BcqWeight, method: str) -> Array:
    """What a look-up kernel gives for rows of ordinary magnitudes.

    Args:
        a: float32 or float16 ``[M, K]``.
        weight: the matrix ``[N, K]``.
        method: "t16" or "t8".

    Returns:
        ``[M, N]`` of the type of ``a``.
    """
    padded = ceil_div(weight.inputs, WORD) * WORD
    x = np.zeros((len(a), padded), np.float32)
    x[:, : weight.inputs] = a
    bits = np.zeros((*weight.words.shape[:2], padded), np.int64)
    bits[..., : weight.inputs] = unpack_bits(weight.words, weight.inputs)
    index = bits.reshape(*bits.shape[:2], -1, 4) @ np.array([1, 2, 4, 8])
    y = np.zeros((len(a), weight.words.shape[1]), np.float32)
    for group, first, end in blocks(weight.inputs, weight.group_size):
        tables, scale = entries(x[:, first:end], RANGE[method])
        quads = np.arange(tables.shape[1])
        for plane, alpha in enumerate(weight.alpha[:, :, group].astype(np.float32)):
            sums = tables[:, quads, index[plane, :, first // 4 : end // 4]].sum(axis=2)
            y = fma(alpha[None, :], scale[:, None] * sums.astype(np.float32), y)
        if weight.offset is not None:
            y = fma(weight.offset[None, :, group].astype(np.float32), block_sums(x[:, first:end])[:, None], y)
    return y.astype(a.dtype)
