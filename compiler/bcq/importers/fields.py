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
    stream = np.unpackbits(little.view(np.uint8), axis=-1, bitorder="little", count=bits * count)
    return np.packbits(stream.reshape(*stream.shape[:-1], count, bits), axis=-1, bitorder="little")[..., 0]


def pack_fields(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Inverse of :func:`unpack_fields` into bytes ``[..., ceil(count * bits / 8)]``, padded with zeros."""
    stream = np.unpackbits(values[..., None], axis=-1, bitorder="little", count=bits)
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
    values = np.zeros(planes.shape[1:], np.uint8)
    for plane in planes:
        values = (values << 1) | plane
    return values
