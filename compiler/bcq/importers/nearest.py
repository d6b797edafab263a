# SPDX-License-Identifier: Apache-2.0
"""The integer grid of MatMulNBits that is nearest to weights that are none, and how far it is from them.

For runtimes with fast kernels for uniform grids only (onnxruntime-web on WebGPU): a twin of a packed model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import BcqWeight, Float32
from bcq.errors import UnsupportedError
from bcq.importers.as_grid import Blocks, block_size
from bcq.importers.fields import pack_fields, unpack_fields

BITS = (4, 8)  # the widths whose zero-points every runtime reads
_ROWS = 1024  # dense at a time
_SHRINK = np.linspace(0.7, 1.0, 13, dtype=np.float32)  # of the range: what is cut off makes finer steps


@dataclass(frozen=True)
class Nearest:
    """A grid and its distance.

    Attributes:
        blocks: as `MatMulNBits` stores it.
        worst: largest error of a weight, in steps of its block.
        relative_error: sum of squared errors over the sum of squared weights.
    """

    blocks: Blocks
    worst: float
    relative_error: float


def nearest(weight: BcqWeight, bits: int, who: str, dtype: type[np.floating[Any]]) -> Nearest:
    """The grid with the least squared error among some ranges, block by block.

    Args:
        weight: any BCQ weight.
        bits: 4 or 8.
        who: the node, for errors.
        dtype: type of the scales.

    Raises:
        UnsupportedError: E403 when a weight is not finite.
    """
    size, scales, zeros = block_size(weight.group_size, weight.inputs), [], []
    worst, squared, total = 0.0, 0.0, 0.0
    for dense in _dense(weight, size):
        if not np.isfinite(dense).all():
            raise UnsupportedError("E403", f"{who} has weights that are not finite.", "Quantize again.")
        scale, zero = _best_range(dense, bits, dtype)
        error = _values(dense, scale, zero, bits) - dense
        worst = max(worst, float((np.abs(error) / scale[..., None]).max()))
        squared += float(np.square(error, dtype=np.float64).sum())
        total += float(np.square(dense, dtype=np.float64).sum())
        scales.append(scale)
        zeros.append(zero)
    packed = pack_fields(np.concatenate(zeros).astype(np.uint8), bits)
    blocks = Blocks(bits, size, np.concatenate(scales).astype(np.float64), packed)
    return Nearest(blocks, worst, squared / total if total else 0.0)


def nearest_levels(weight: BcqWeight, found: Nearest) -> NDArray[np.uint8]:
    """The levels as MatMulNBits stores them, uint8 ``[N, B, block_size bits / 8]``."""
    blocks, done, levels = found.blocks, 0, []
    assert blocks.zeros is not None
    zeros = unpack_fields(blocks.zeros, blocks.bits, blocks.scales.shape[1]).astype(np.float32)
    for dense in _dense(weight, blocks.block_size):
        rows = slice(done, done + len(dense))
        chosen = _levels(dense, blocks.scales[rows].astype(np.float32), zeros[rows], blocks.bits)
        levels.append(pack_fields(chosen.astype(np.uint8), blocks.bits))
        done += len(dense)
    return np.concatenate(levels)


def _dense(weight: BcqWeight, size: int) -> Iterator[Float32]:
    """Blocks of some rows, ``[rows, B, size]``; inputs that are not there are 0."""
    padding = -weight.inputs % size
    for begin in range(0, weight.rows, _ROWS):
        rows = slice(begin, begin + _ROWS)
        part = BcqWeight(
            words=weight.words[:, rows],
            alpha=weight.alpha[:, rows],
            offset=None if weight.offset is None else weight.offset[rows],
            inputs=weight.inputs,
            group_size=weight.group_size,
        )
        values = np.pad(part.dequantize(), ((0, 0), (0, padding)))
        yield values.reshape(len(values), -1, size)


def _best_range(dense: Float32, bits: int, dtype: type[np.floating[Any]]) -> tuple[Float32, Float32]:
    """Scale and zero-point of each block, ``[rows, B]``; a grid always has the value 0."""
    low, high = np.minimum(dense.min(axis=2), 0), np.maximum(dense.max(axis=2), 0)
    best = np.full(low.shape, np.inf, np.float32)
    scale, zero = np.ones_like(low), np.zeros_like(low)
    for shrink in _SHRINK:
        step = ((high - low) * shrink / (2**bits - 1)).astype(dtype).astype(np.float32)
        step = np.where(step > 0, step, np.float32(1))
        middle = np.clip(np.rint(-low * shrink / step), 0, 2**bits - 1).astype(np.float32)
        error = np.square(_values(dense, step, middle, bits) - dense).sum(axis=2)
        better = error < best
        best = np.where(better, error, best)
        scale, zero = np.where(better, step, scale), np.where(better, middle, zero)
    return scale, zero


def _levels(dense: Float32, scale: Float32, zero: Float32, bits: int) -> Float32:
    levels: Float32 = np.clip(np.rint(dense / scale[..., None]) + zero[..., None], 0, 2**bits - 1)
    return levels


def _values(dense: Float32, scale: Float32, zero: Float32, bits: int) -> Float32:
    return (_levels(dense, scale, zero, bits) - zero[..., None]) * scale[..., None]
