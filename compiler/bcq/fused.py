# SPDX-License-Identifier: Apache-2.0
"""Matrices that lie in one: rows of several packed matrices side by side, and the note that tells them apart.

A node that stands for several keeps a note in its metadata: name and rows of each part in order, so every
matrix of the original model is found again, with its own alphas and its own hash. An Add that holds several
biases has the same note.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import contract
from bcq.packing import PackedWeight

NOTE = "bcq.parts"  # the key in a node's metadata_props
TILE = contract.TILE_ROWS


@dataclass(frozen=True)
class Part:
    """One matrix (or bias) inside a fused one.

    Attributes:
        name: what it is called in the model that it comes from.
        first: its first row in the fused one.
        rows: N of the part.
    """

    name: str
    first: int
    rows: int


def parts_of(names: Sequence[str], rows: Sequence[int]) -> list[Part]:
    """Parts that follow each other without a gap."""
    ends = np.cumsum(rows).tolist()
    return [Part(name, end - n, n) for name, end, n in zip(names, ends, rows, strict=True)]


def write_note(notes: MutableMapping[str, str], parts: Sequence[Part]) -> None:
    """Records the parts in a node's metadata."""
    notes[NOTE] = json.dumps([[part.name, part.rows] for part in parts])


def read_note(notes: Mapping[str, str]) -> list[Part]:
    """The parts that a node stands for; none when it is an ordinary node.

    Raises:
        ValueError: when the note is not one that `write_note` wrote.
    """
    if NOTE not in notes:
        return []
    try:
        entries = json.loads(notes[NOTE])
    except RecursionError as fault:
        raise ValueError("it nests too deep") from fault
    if not isinstance(entries, list) or not entries or not all(map(is_entry, entries)):
        raise ValueError(f"got {notes[NOTE][:100]!r}, expected a list of [name, rows]")
    return parts_of([name for name, _ in entries], [rows for _, rows in entries])


def is_entry(entry: Any) -> bool:
    """Whether a JSON value is a name and a number of rows."""
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and type(entry[1]) is int
        and 0 < entry[1] < 1 << 31
    )


def joined_name(names: Sequence[str]) -> str:
    """One name for several: what they share, and in braces where they differ: ``h.0.{q,k,v}_proj.weight``."""
    shortest = min(map(len, names))
    before = _common(names, shortest)
    after = _common([name[::-1] for name in names], shortest - before)
    middles = ",".join(name[before : len(name) - after] for name in names)
    return f"{names[0][:before]}{{{middles}}}{names[0][len(names[0]) - after :]}"


def _common(names: Sequence[str], longest: int) -> int:
    """How many leading characters all names share, ending where a word ends."""
    count = next((i for i in range(longest) if len({name[i] for name in names}) > 1), longest)
    while count and names[0][count - 1] not in "._/":
        count -= 1
    return count


def join_rows(tensors: Sequence[NDArray[Any]], rows: Sequence[int]) -> NDArray[Any]:
    """Tensors ``[T, ..., 16]`` of packed matrices as one tensor of the matrix with all their rows.

    Args:
        tensors: the same tensor of each matrix, in order; row tiles first and rows of a tile last.
        rows: N of each matrix; none but the last needs to be a multiple of 16.
    """
    if all(count % contract.TILE_ROWS == 0 for count in rows[:-1]):
        return np.concatenate(tensors)
    plain = [_untiled(tensor)[:count] for tensor, count in zip(tensors, rows, strict=True)]
    return tiled(np.concatenate(plain))


def take_rows(tensor: NDArray[Any], first: int, rows: int) -> NDArray[Any]:
    """Inverse of `join_rows` for one part; a view where it fills whole tiles."""
    tile = contract.TILE_ROWS
    if first % tile == 0 and rows % tile == 0:
        whole: NDArray[Any] = tensor[first // tile : (first + rows) // tile]
        return whole
    return tiled(_untiled(tensor)[first : first + rows])


def take_part(packed: PackedWeight, part: Part) -> PackedWeight:
    """One matrix of a fused one, as it was before."""
    tensors = {
        name: array if array.ndim == 1 else take_rows(array, part.first, part.rows)
        for name, array in packed.tensors().items()
    }
    return PackedWeight(**tensors, inputs=packed.inputs, rows=part.rows, group_size=packed.group_size)


def take_parts(packed: PackedWeight, parts: Sequence[Part]) -> Iterator[tuple[str, PackedWeight]]:
    """Every matrix of a fused one with its name.

    Raises:
        ValueError: when the parts have not as many rows as the matrix.
    """
    if sum(part.rows for part in parts) != packed.rows:
        raise ValueError(f"parts of {sum(part.rows for part in parts)} rows, expected {packed.rows}")
    for part in parts:
        yield part.name, take_part(packed, part)


def _untiled(tensor: NDArray[Any]) -> NDArray[Any]:
    """``[T, ..., 16]`` to ``[16 T, ...]``."""
    apart = np.moveaxis(tensor, -1, 1)
    flat: NDArray[Any] = apart.reshape(apart.shape[0] * apart.shape[1], *apart.shape[2:])
    return flat


def tiled(rows: NDArray[Any]) -> NDArray[Any]:
    """``[N, ...]`` to ``[T, ..., 16]``, padded with zeros."""
    tile = contract.TILE_ROWS
    padding = [(0, -len(rows) % tile)] + [(0, 0)] * (rows.ndim - 1)
    padded = np.pad(rows, padding)
    return np.ascontiguousarray(
        np.moveaxis(padded.reshape(len(padded) // tile, tile, *rows.shape[1:]), 1, -1)
    )
