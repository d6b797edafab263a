# SPDX-License-Identifier: Apache-2.0
"""Packed codes to dense numbers, a block at a time: through the kernels on a CPU, in torch anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bcq import contract
from bcq.bcq import ceil_div
from bcq.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcq.kernels.core import Core
    from bcq.packing import PackedWeight

Array = NDArray[Any]
TILE, WORD = contract.TILE_ROWS, contract.WORD_BITS
BLOCK_WEIGHTS = (
    1 << 20
)  # dense numbers at a time, 4 MB: large enough for a fast product, small beside a model
_PART_WEIGHTS = 1 << 16  # less is not worth a thread


@dataclass(frozen=True)
class Shape:
    """The sizes of one matrix: N rows, K inputs, q bits, g group_size, the letters of ``ops/README.md``."""

    rows: int
    inputs: int
    bits: int
    group_size: int

    @property
    def tiles(self) -> int:
        """T."""
        return ceil_div(self.rows, TILE)

    @property
    def groups(self) -> int:
        """G."""
        return ceil_div(self.inputs, self.group_size)

    @property
    def chunks(self) -> int:
        """C."""
        return ceil_div(self.inputs, WORD)


@dataclass(frozen=True)
class Factors:
    """Scaling factors in the layout of the operators, detached from any graph.

    Attributes:
        alpha_1: ``[T, G, 16]``.
        alpha_rest: ``[T, G, q-1, 16]``.
        offset: ``[T, G, 16]``, or None.
    """

    alpha_1: torch.Tensor
    alpha_rest: torch.Tensor
    offset: torch.Tensor | None

    def between(self, first: int, last: int) -> Factors:
        """Those of the tiles ``first`` to ``last - 1``."""
        offset = None if self.offset is None else self.offset[first:last]
        return Factors(self.alpha_1[first:last], self.alpha_rest[first:last], offset)

    def plane(self, index: int) -> torch.Tensor:
        """Those of one plane, ``[T, G, 16]``."""
        return self.alpha_1 if index == 0 else self.alpha_rest[:, :, index - 1]


@cache
def kernels() -> Core | None:
    """The library's kernels, or None where it is not built: everything works without, slower."""
    from bcq.kernels.core import Core

    try:
        return Core.load()
    except ResourceError:
        return None


def blocks(shape: Shape) -> Iterator[tuple[int, int, int]]:
    """Cuts the tiles of a matrix into blocks: first tile, that of the next, rows without padding."""
    step = max(1, BLOCK_WEIGHTS // (TILE * shape.chunks * WORD))
    for first in range(0, shape.tiles, step):
        last = min(first + step, shape.tiles)
        yield first, last, min(last * TILE, shape.rows) - first * TILE


def dense(codes: torch.Tensor, factors: Factors, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """The weights of some tiles.

    Args:
        codes: uint32 ``[T', C, q, 16]``.
        factors: of the same tiles.
        shape: ``rows`` counts the rows of these tiles that are no padding.
        dtype: of the result.

    Returns:
        ``[rows, K]``.
    """
    core = kernels()
    if core is not None and dtype is torch.float32 and codes.device.type == "cpu":
        weight = packed(codes, factors, shape)
        parts = in_parts(shape, lambda a, b: _rows_of(core, tiles_of(weight, a, b)))
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
    wide = dtype if dtype is torch.float64 else torch.float32
    total = torch.zeros(shape.rows, shape.inputs, dtype=wide, device=codes.device)
    for plane in range(shape.bits):
        scale = spread(factors.plane(plane).to(wide), shape)
        total.addcmul_(scale, signs(codes, plane, shape, wide))
    if factors.offset is not None:
        total += spread(factors.offset.to(wide), shape)
    return total.to(dtype)


def signs(codes: torch.Tensor, plane: int, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """B of one plane as -1 and +1, ``[rows, K]``; arguments as for `dense`."""
    words = codes.view(torch.int32)[:, :, plane].contiguous()  # torch moves uint32 but does not compute on it
    octets = words.view(torch.uint8).view(shape.tiles, shape.chunks, TILE, 4).permute(0, 2, 1, 3)
    table = _sign_table(dtype, codes.device)
    found = torch.nn.functional.embedding(octets.reshape(-1).int(), table)
    return found.view(shape.tiles * TILE, shape.chunks * WORD)[: shape.rows, : shape.inputs]


def spread(tiled: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Factors ``[T, G, 16]`` for every weight they scale, ``[rows, K]`` (``[rows, 1]`` with one group)."""
    plain = untiled(tiled, shape)
    if shape.groups == 1:
        return plain
    return plain.repeat_interleave(shape.group_size, dim=1)[:, : shape.inputs]


def untiled(tiled: torch.Tensor, shape: Shape) -> torch.Tensor:
    """``[T, G, 16]`` to ``[rows, G]``."""
    return tiled.transpose(1, 2).reshape(shape.tiles * TILE, shape.groups)[: shape.rows]


def tiled(plain: torch.Tensor, shape: Shape) -> torch.Tensor:
    """``[rows, G]`` to ``[T, G, 16]``; the rows of the padding are zero."""
    padded = torch.nn.functional.pad(plain, (0, 0, 0, shape.tiles * TILE - shape.rows))
    return padded.view(shape.tiles, TILE, shape.groups).transpose(1, 2).contiguous()


def packed(codes: torch.Tensor, factors: Factors, shape: Shape) -> PackedWeight:
    """The same codes as NumPy arrays, for the kernels; factors are rounded to float16 as in a file."""
    from bcq.packing import PackedWeight

    offset = np.zeros(0, np.float16) if factors.offset is None else _half(factors.offset)
    return PackedWeight(
        codes=codes.numpy(),
        alpha_1=_half(factors.alpha_1),
        alpha_rest=_half(factors.alpha_rest),
        offset=offset,
        inputs=shape.inputs,
        rows=shape.rows,
        group_size=shape.group_size,
    )


def tiles_of(weight: PackedWeight, first: int, last: int) -> PackedWeight:
    """Some tiles of a packed matrix; nothing is copied."""
    from bcq.packing import PackedWeight

    rows = min(last * TILE, weight.rows) - first * TILE
    return PackedWeight(
        codes=weight.codes[first:last],
        alpha_1=weight.alpha_1[first:last],
        alpha_rest=weight.alpha_rest[first:last],
        offset=weight.offset[first:last] if weight.offset.size else weight.offset,
        inputs=weight.inputs,
        rows=rows,
        group_size=weight.group_size,
    )


def in_parts(shape: Shape, work: Callable[[int, int], Array]) -> list[Array]:
    """Results of ``work(first, last)`` for pieces of the tiles, on as many threads as torch may use.

    The kernels release Python's lock, and no output depends on the pieces: any number gives the same bits.
    """
    parts = min(torch.get_num_threads(), shape.tiles, ceil_div(shape.rows * shape.inputs, _PART_WEIGHTS))
    if parts <= 1:
        return [work(0, shape.tiles)]
    step = ceil_div(shape.tiles, parts)
    with ThreadPoolExecutor(parts) as pool:
        waiting = [pool.submit(work, a, min(a + step, shape.tiles)) for a in range(0, shape.tiles, step)]
        return [one.result() for one in waiting]


def _rows_of(core: Core, weight: PackedWeight) -> Array:
    return core.gather(np.arange(weight.rows), weight)


def _half(tensor: torch.Tensor) -> Any:
    return tensor.detach().to(torch.float16).contiguous().numpy()


@cache
def _sign_table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The eight signs of every byte, ``[256, 8]``."""
    octets = torch.arange(256)[:, None] >> torch.arange(8)
    return ((octets & 1) * 2 - 1).to(device=device, dtype=dtype)
