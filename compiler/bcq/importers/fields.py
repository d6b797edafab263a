# SPDX-License-Identifier: Apache-2.0
"""Small unsigned integers packed into words: q bits each, the first in the lowest bits, without gaps.

Fields of 3 bits run on from one word into the next, so 32 of them fill 3 words; those of 2, 4 and 8 bits
never cross a word. Little-endian words in order are one stream of bits in all these cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import Words, pack_bits


def unpack_fields(words: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """The fields along the last axis.

    Args:
        words: unsigned or signed integers ``[..., W]`` of any width.
        bits: q, 1 to 8.
        count: how many fields to read; at most what the words hold.

    Returns:
        uint8 ``[..., count]``.
    """
    little = np.ascontiguousarray(words, words.dtype.newbyteorder("<"))
    octets = little.view(np.uint8)
    if 8 % bits == 0:  # no field crosses a byte
        fields = np.stack([(octets >> place) & (2**bits - 1) for place in range(0, 8, bits)], axis=-1)
        return np.ascontiguousarray(fields.reshape(*octets.shape[:-1], -1)[..., :count])
    stream = np.unpackbits(octets, axis=-1, bitorder="little", count=bits * count)
    return _join(stream.reshape(*stream.shape[:-1], count, bits))


def pack_fields(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Inverse of :func:`unpack_fields` into bytes ``[..., ceil(count * bits / 8)]``, padded with zeros."""
    stream = np.stack([(values >> bit) & 1 for bit in range(bits)], axis=-1)
    return np.packbits(stream.reshape(*values.shape[:-1], -1), axis=-1, bitorder="little")


def planes_of(values: NDArray[np.uint8], bits: int) -> Words:
    """The bits of integers as planes, the most significant first.

    Args:
        values: uint8 ``[N, K]``.
        bits: q.

    Returns:
        uint32 ``[q, N, ceil(K / 32)]`` as in :class:`bcq.bcq.BcqWeight`.
    """
    return np.stack([pack_bits((values >> bit) & 1) for bit in reversed(range(bits))])


def values_of(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Inverse of :func:`planes_of` on unpacked bits ``[q, N, K]``: uint8 ``[N, K]``."""
    return _join(np.moveaxis(planes[::-1], 0, -1))


def _join(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Numbers from their bits, the lowest first, along the last axis; a plane at a time, as bits are many."""
    values: NDArray[np.uint8] = bits[..., 0].copy()
    for place in range(1, bits.shape[-1]):
        values |= bits[..., place] << np.uint8(place)
    return values
