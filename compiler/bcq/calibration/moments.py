# SPDX-License-Identifier: Apache-2.0
"""Second moments of what linear layers read, shared by those that read the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np

from bcq.bcq import Float32

if TYPE_CHECKING:
    import torch
    from torch import nn

ROWS = 512  # of a moment that one product gives; products of fixed shape do not depend on threads

Reading = tuple[str, "torch.Tensor"]  # name of a layer, and what it read: [..., K]


@dataclass
class _Sums:
    """The sum of x x^T over ``rows`` inputs x of a layer.

    Attributes:
        path: file with the sum, float32 ``[K, K]``.
        values: the same, mapped until it is finished.
        rows: how many there were.
    """

    path: Path
    values: torch.Tensor | None
    rows: int = 0


class Readings:
    """Notes what layers read while it is switched on, for each thread apart.

    Args:
        layers: modules by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self._noted = local()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Layers are watched inside the block."""
        handles = [
            layer.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self) -> None:
        """Notes from now on, in this thread."""
        self._noted.readings = []

    def end(self) -> list[Reading]:
        """What this thread noted since :meth:`begin`."""
        readings: list[Reading] | None = getattr(self._noted, "readings", None)
        self._noted.readings = None
        return readings or []

    def _hook(self, name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            readings = getattr(self._noted, "readings", None)
            if readings is not None:
                readings.append((name, args[0] if args else kwargs["input"]))

        return note


class Moments:
    """Second moments of layers by name, summed batch by batch in the order of the calls.

    Args:
        folder: where the sums lie as ``.npy`` files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of: dict[str, _Sums] = {}
        self._all: list[_Sums] = []

    def names(self) -> list[str]:
        """Layers that have read something."""
        return list(self._of)

    def add(self, readings: Iterable[Reading], threads: ThreadPoolExecutor) -> None:
        """Adds one batch; layers that read the same tensor when they are first seen share their sums.

        Args:
            readings: what layers read.
            threads: that share the products.
        """
        added: set[tuple[int, int]] = set()
        first: dict[int, _Sums] = {}
        for name, tensor in readings:
            if name not in self._of:
                if id(tensor) not in first:
                    first[id(tensor)] = self._new(tensor.shape[-1])
                self._of[name] = first[id(tensor)]
            sums = self._of[name]
            if (id(sums), id(tensor)) not in added:
                added.add((id(sums), id(tensor)))
                _accumulate(sums, tensor, threads)

    def finish(self) -> None:
        """Turns sums into means; they are in the files alone from now on."""
        for sums in self._all:
            if sums.values is not None:
                sums.values /= sums.rows
            sums.values = None

    def spread(self, name: str, share: float) -> None:
        """Adds the identity times a share of the mean diagonal to a finished mean."""
        values = np.load(self._of[name].path, mmap_mode="r+", allow_pickle=False)
        values[np.diag_indices(len(values))] += np.float32(share * values.diagonal().mean(dtype=np.float64))
        values.flush()

    def path(self, name: str) -> Path:
        """The file with the mean of x x^T, float32 ``[K, K]``, over the inputs x of a layer."""
        return self._of[name].path

    def remove(self) -> None:
        """Removes all files."""
        for sums in self._all:
            sums.path.unlink(missing_ok=True)
        self._of, self._all = {}, []

    def _new(self, inputs: int) -> _Sums:
        import torch

        path = self._folder / f"moments-{len(self._all)}.npy"
        self._all.append(_Sums(path, torch.from_numpy(_mapped(path, inputs))))
        return self._all[-1]


def _mapped(path: Path, inputs: int) -> Float32:
    """Zeros ``[K, K]`` in a file that has all its blocks, so that a full disk is an error and no signal."""
    values: Float32 = np.lib.format.open_memmap(path, "w+", np.float32, (inputs, inputs))
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return values


def _accumulate(sums: _Sums, inputs: torch.Tensor, threads: ThreadPoolExecutor) -> None:
    values = sums.values
    assert values is not None  # finish comes last
    rows = inputs.reshape(-1, inputs.shape[-1]).float().contiguous()

    def add(begin: int) -> None:
        part = slice(begin, begin + ROWS)
        values[part].addmm_(rows[:, part].T, rows)

    for _ in threads.map(add, range(0, rows.shape[1], ROWS)):
        pass
    sums.rows += len(rows)
