# SPDX-License-Identifier: Apache-2.0
"""Gives modules their weights from the checkpoint, or as they were packed, and takes them away again."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bcq import packing
from bcq.errors import InputError
from bcq.files.checkpoint import Checkpoint
from bcq.solver.solve import rows_of

if TYPE_CHECKING:
    from bcq.bcq import Float32
    from bcq.packing import PackedWeight

TABLE_BYTES = 1 << 26  # embeddings from this size on are mapped from a file: few of their rows are read
_PIECE_BYTES = 1 << 24  # of such a table in memory at a time

Holders = Mapping[str, nn.Module]
Packed = Callable[[str], "tuple[PackedWeight, bool] | None"]


def holders(module: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The modules inside one that have parameters of their own, by name."""
    return {name: inner for name, inner in module.named_modules(prefix=prefix) if inner._parameters}


class ModelWeights:
    """The weights of a model that is never in memory as a whole.

    Args:
        checkpoint: where they lie.
        names: checkpoint name of each parameter.
        packed: by checkpoint name the packed form of a matrix, and whether the checkpoint holds ``[K, N]``;
            None while it is dense.
        folder: for tables that are mapped.
    """

    def __init__(
        self, checkpoint: Checkpoint, names: Mapping[str, str], packed: Packed, folder: Path
    ) -> None:
        self._checkpoint = checkpoint
        self._names = names
        self._packed = packed
        self._folder = folder

    def stored(self, modules: Holders) -> list[str]:
        """Checkpoint names of the parameters that modules have of their own, each once."""
        names = [_join(prefix, key) for prefix, module in modules.items() for key in _keys(module)]
        return list(dict.fromkeys(self._names[name] for name in names))

    @contextmanager
    def loaded(self, modules: Holders, packed: bool) -> Iterator[None]:
        """Modules hold their own parameters inside the block.

        Args:
            modules: by name, as from `holders`.
            packed: take matrices that are packed as such, dequantized; else all as they were.

        Raises:
            InputError: E106 when a weight is NaN or infinite.
        """
        before: list[tuple[nn.Module, str, nn.Parameter | None]] = []
        values: dict[str, nn.Parameter] = {}
        try:
            for prefix, module in modules.items():
                for key in _keys(module):
                    stored = self._names[_join(prefix, key)]
                    if stored not in values:
                        value = self._value(stored, isinstance(module, nn.Embedding), packed)
                        values[stored] = nn.Parameter(value, requires_grad=False)
                    before.append((module, key, module._parameters[key]))
                    module._parameters[key] = values[stored]
            yield
        finally:
            for module, key, empty in before:
                module._parameters[key] = empty

    def digest(self, stored: str) -> bytes:
        """SHA-256 of a tensor as the checkpoint holds it."""
        entry, digest = self._checkpoint.entry(stored), hashlib.sha256()
        with entry.file.open("rb") as stream:
            stream.seek(entry.offset)
            for left in range(entry.nbytes, 0, -_PIECE_BYTES):
                digest.update(stream.read(min(left, _PIECE_BYTES)))
        return digest.digest()

    def _value(self, stored: str, table: bool, packed: bool) -> torch.Tensor:
        """A tensor as float32, in memory that torch has aligned, so that products repeat to the bit."""
        shape, found = self._checkpoint.shape(stored), self._packed(stored) if packed else None
        if table and 4 * math.prod(shape) >= TABLE_BYTES:
            return self._mapped(stored, shape, found[0] if found else None)
        if found is None:
            array = self._finite(stored, self._checkpoint.read(stored))
        else:
            array = packing.unpack(found[0]).dequantize()
            array = array.T if found[1] else array
        value = torch.empty(shape, dtype=torch.float32)
        value.numpy()[...] = array
        return value

    def _mapped(self, stored: str, shape: tuple[int, ...], packed: PackedWeight | None) -> torch.Tensor:
        """A table in a file, of which only the rows that are read come into memory."""
        weight = packing.unpack(packed) if packed else None
        file = self._folder / hashlib.sha256(f"{stored} {packed is None}".encode()).hexdigest()[:16]
        step = max(1, _PIECE_BYTES // (4 * shape[1]))
        with file.open("wb") as stream:
            for begin in range(0, shape[0], step):
                rows = slice(begin, min(begin + step, shape[0]))
                part = rows_of(weight, rows).dequantize() if weight else self._rows(stored, rows)
                stream.write(np.ascontiguousarray(part).data)
        mapped = torch.from_numpy(np.memmap(file, np.float32, "c", shape=shape))
        file.unlink()  # the mapping keeps it
        return mapped

    def _rows(self, stored: str, rows: slice) -> Float32:
        entry = self._checkpoint.entry(stored)
        size = entry.nbytes // entry.shape[0]
        part = dataclasses.replace(
            entry,
            shape=(rows.stop - rows.start, *entry.shape[1:]),
            offset=entry.offset + size * rows.start,
            nbytes=size * (rows.stop - rows.start),
        )
        checkpoint = dataclasses.replace(self._checkpoint, tensors={stored: part})
        return self._finite(stored, checkpoint.read(stored))

    def _finite(self, stored: str, array: Float32) -> Float32:
        if not np.isfinite(array).all():
            raise InputError(
                "E106",
                f"{stored} holds NaN or infinity, expected finite weights.",
                "The checkpoint is damaged, or training diverged: use an earlier one.",
            )
        return array


def _keys(module: nn.Module) -> list[str]:
    return [key for key, parameter in module._parameters.items() if parameter is not None]


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key
