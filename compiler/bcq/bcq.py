# SPDX-License-Identifier: Apache-2.0
"""A binary-coded weight, W = sum_i alpha_i B_i, in NumPy: the oracle of every other implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import contract

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
Words = NDArray[np.uint32]


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer that is at least ``numerator / denominator``."""
    return -(-numerator // denominator)


def pack_bits(bits: NDArray[Any]) -> Words:
    """Packs ones and zeros along the last axis into words of 32.

    Args:
        bits: ``[..., K]``; non-zero means +1.

    Returns:
        uint32 ``[..., ceil(K / 32)]``; bit j of word c is input ``32 c + j``; the padding is zero.
    """
    inputs = bits.shape[-1]
    padding = ceil_div(inputs, contract.WORD_BITS) * contract.WORD_BITS - inputs
    padded = np.pad(bits.astype(bool), [(0, 0)] * (bits.ndim - 1) + [(0, padding)])
    return np.packbits(padded, axis=-1, bitorder="little").view("<u4").astype(np.uint32, copy=False)


def unpack_bits(words: Words, inputs: int) -> NDArray[np.uint8]:
    """Inverse of :func:`pack_bits`: uint8 zeros and ones ``[..., inputs]``."""
    octets = np.ascontiguousarray(words, dtype="<u4").view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little", count=inputs)


@dataclass(frozen=True)
class BcqWeight:
    """One matrix ``[N, K]`` as bit planes and scaling factors, in plain order.

    Source: Kwon et al. 2022 (arXiv 2210.03858), section 3, equation 1, with groups of g inputs and an
    optional offset per group.

    Attributes:
        words: uint32 ``[q, N, ceil(K / 32)]``, packed by :func:`pack_bits`; 1 is +1 and 0 is -1.
        alpha: float16 ``[q, N, G]``, G = ceil(K / g).
        offset: float16 ``[N, G]``, or None.
        inputs: K.
        group_size: g; a multiple of 32, or K ("row-wise").

    Raises:
        ValueError: when shapes or types do not fit together.
    """

    words: Words
    alpha: Float16
    offset: Float16 | None
    inputs: int
    group_size: int

    def __post_init__(self) -> None:
        check_group_size(self.group_size, self.inputs)
        if not contract.MIN_BITS <= self.words.shape[0] <= contract.MAX_BITS:
            raise ValueError(f"bits: got {self.words.shape[0]}, expected 1 to 8")
        expected = (self.bits, self.rows, ceil_div(self.inputs, contract.WORD_BITS))
        _check("words", self.words, np.uint32, expected)
        _check("alpha", self.alpha, np.float16, (self.bits, self.rows, self.groups))
        if self.offset is not None:
            _check("offset", self.offset, np.float16, (self.rows, self.groups))

    @property
    def bits(self) -> int:
        """q, the number of planes."""
        return int(self.words.shape[0])

    @property
    def rows(self) -> int:
        """N, the output features."""
        return int(self.words.shape[1])

    @property
    def groups(self) -> int:
        """G, the groups of one row."""
        return ceil_div(self.inputs, self.group_size)

    def dequantize(self) -> Float32:
        """The dense matrix, float32 ``[N, K]``, summed from plane 1 to plane q and then the offset."""
        group_of = np.arange(self.inputs) // self.group_size
        alpha = self.alpha.astype(np.float32)
        dense = np.zeros((self.rows, self.inputs), np.float32)
        for plane in range(self.bits):
            signs = unpack_bits(self.words[plane], self.inputs).astype(np.float32) * 2 - 1
            dense += alpha[plane][:, group_of] * signs
        if self.offset is not None:
            dense += self.offset.astype(np.float32)[:, group_of]
        return dense


def check_group_size(group_size: int, inputs: int) -> None:
    """Raises ValueError unless ``group_size`` is a positive multiple of 32 or equals ``inputs``."""
    multiple = group_size > 0 and group_size % contract.GROUP_SIZE_MULTIPLE == 0
    if inputs < 1 or not (multiple or group_size == inputs):
        raise ValueError(f"group_size: got {group_size} for K={inputs}, expected a multiple of 32 or K")


def _check(name: str, array: NDArray[Any], dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{name}: got {array.dtype}{list(array.shape)}, expected {np.dtype(dtype)}{list(shape)}"
        )
