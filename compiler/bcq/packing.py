# SPDX-License-Identifier: Apache-2.0
"""Plain order to the ``tile16`` layout of ``ops/README.md`` and back: inverse of each other."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import contract
from bcq.bcq import BcqWeight, Float16, Words, ceil_div


@dataclass(frozen=True)
class PackedWeight:
    """One matrix in the layout that kernels compute on.

    Attributes:
        codes: uint32 ``[T, C, planes, 16]``, of which the first q planes are this weight's.
        alpha_1: float16 ``[T, G, 16]``; the only tensor that a task trains.
        alpha_rest: float16 ``[T, G, q-1, 16]``; zero elements when q = 1.
        offset: float16 ``[T, G, 16]``, or shape ``[0]`` when there is none.
        inputs: K.
        rows: N.
        group_size: g.
    """

    codes: Words
    alpha_1: Float16
    alpha_rest: Float16
    offset: Float16
    inputs: int
    rows: int
    group_size: int

    @property
    def bits(self) -> int:
        """q, the number of planes that the weight reads."""
        return int(self.alpha_rest.shape[2]) + 1

    @property
    def planes(self) -> int:
        """How many planes the codes hold; more than q where a weight of more bits shares them."""
        return int(self.codes.shape[2])

    @property
    def format_version(self) -> int:
        """The version of ``ops/README.md`` that a node with this weight has."""
        return contract.FORMAT_VERSION if self.bits == self.planes else contract.NESTED_FORMAT_VERSION

    @property
    def nbytes(self) -> int:
        """Bytes of all four tensors."""
        return int(sum(tensor.nbytes for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The four tensors under their names in the operator contract."""
        return {
            "codes": self.codes,
            "alpha_1": self.alpha_1,
            "alpha_rest": self.alpha_rest,
            "offset": self.offset,
        }

    def code_hash(self) -> str:
        """Lower-case hex SHA-256 of the little-endian bytes of ``codes``."""
        return hashlib.sha256(np.ascontiguousarray(self.codes, dtype="<u4").data).hexdigest()


def pack(weight: BcqWeight) -> PackedWeight:
    """Moves a weight into ``tile16``; rows are padded to 16 with zeros."""
    tiles = ceil_div(weight.rows, contract.TILE_ROWS)
    alpha = _tile_rows(weight.alpha, tiles)
    no_offset = np.zeros((0,), np.float16)
    return PackedWeight(
        codes=np.ascontiguousarray(_tile_rows(weight.words, tiles).transpose(1, 3, 0, 2)),
        alpha_1=np.ascontiguousarray(alpha[0].transpose(0, 2, 1)),
        alpha_rest=np.ascontiguousarray(alpha[1:].transpose(1, 3, 0, 2)),
        offset=no_offset
        if weight.offset is None
        else np.ascontiguousarray(_tile_rows(weight.offset[None], tiles)[0].transpose(0, 2, 1)),
        inputs=weight.inputs,
        rows=weight.rows,
        group_size=weight.group_size,
    )


def among(packed: PackedWeight, codes: Words) -> PackedWeight:
    """The same weight read from the first planes of wider codes, ``[T, C, planes, 16]``."""
    return dataclasses.replace(packed, codes=codes)


def unpack(packed: PackedWeight) -> BcqWeight:
    """Inverse of :func:`pack`; of codes with more planes, the first ones."""
    alpha = np.concatenate([packed.alpha_1[:, :, None], packed.alpha_rest], axis=2)
    return BcqWeight(
        words=_untile_rows(packed.codes[:, :, : packed.bits].transpose(2, 0, 3, 1), packed.rows),
        alpha=_untile_rows(alpha.transpose(2, 0, 3, 1), packed.rows),
        offset=None
        if packed.offset.size == 0
        else _untile_rows(packed.offset.transpose(0, 2, 1)[None], packed.rows)[0],
        inputs=packed.inputs,
        group_size=packed.group_size,
    )


def _tile_rows(array: NDArray[Any], tiles: int) -> NDArray[Any]:
    """``[planes, N, X]`` to ``[planes, T, 16, X]``."""
    planes, rows, width = array.shape
    padded = np.pad(array, ((0, 0), (0, tiles * contract.TILE_ROWS - rows), (0, 0)))
    return padded.reshape(planes, tiles, contract.TILE_ROWS, width)


def _untile_rows(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """``[planes, T, 16, X]`` to ``[planes, N, X]``."""
    planes, tiles, tile_rows, width = array.shape
    return np.ascontiguousarray(array.reshape(planes, tiles * tile_rows, width)[:, :rows])
