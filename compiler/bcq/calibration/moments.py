# SPDX-License-Identifier: Apache-2.0
"""Second moments of what linear layers read, shared by those that read the same, and how it is off."""

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
    """Sums over ``rows`` inputs y of a layer, of which the dense model has x at the same place.

    Attributes:
        paths: files with y y^T and (x - y) y^T, float32 ``[K, K]``.
        values: the same, mapped until they are finished.
        rows: how many there were.
    """

    paths: tuple[Path, Path]
    values: tuple[torch.Tensor, torch.Tensor] | None
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

    def add(self, came: Iterable[Reading], meant: Iterable[Reading], threads: ThreadPoolExecutor) -> None:
        """Adds one batch; layers that read the same tensor when they are first seen share their sums.

        Args:
            came: what layers read.
            meant: what they read in the dense model, as far as that is known.
            threads: that share the products.
        """
        aims: dict[str, list[torch.Tensor]] = {}
        for name, tensor in meant:
            aims.setdefault(name, []).append(tensor)
        added: set[tuple[int, int]] = set()
        first: dict[int, _Sums] = {}
        for name, tensor in came:
            aim = aims[name].pop(0) if aims.get(name) else tensor
            if name not in self._of:
                if id(tensor) not in first:
                    first[id(tensor)] = self._new(tensor.shape[-1])
                self._of[name] = first[id(tensor)]
            sums = self._of[name]
            if (id(sums), id(tensor)) not in added:
                added.add((id(sums), id(tensor)))
                _accumulate(sums, tensor, aim if aim.shape == tensor.shape else tensor, threads)

    def finish(self) -> None:
        """Turns sums into means; they are in the files alone from now on."""
        for sums in self._all:
            for values in sums.values or ():
                values /= sums.rows
            sums.values = None

    def path(self, name: str) -> Path:
        """The file with the mean of y y^T, float32 ``[K, K]``, over the inputs y of a layer."""
        return self._of[name].paths[0]

    def drift(self, name: str) -> Path:
        """The file with the mean of (x - y) y^T, x being the inputs in the dense model."""
        return self._of[name].paths[1]

    def remove(self) -> None:
        """Removes all files."""
        for sums in self._all:
            for path in sums.paths:
                path.unlink(missing_ok=True)
        self._of, self._all = {}, []

    def _new(self, inputs: int) -> _Sums:
        import torch

        number = len(self._all)
        paths = (self._folder / f"moments-{number}.npy", self._folder / f"drift-{number}.npy")
        one, other = (_mapped(path, inputs) for path in paths)
        self._all.append(_Sums(paths, (torch.from_numpy(one), torch.from_numpy(other))))
        return self._all[-1]


def _mapped(path: Path, inputs: int) -> Float32:
    """Zeros ``[K, K]`` in a file that has all its blocks, so that a full disk is an error and no signal."""
    values: Float32 = np.lib.format.open_memmap(path, "w+", np.float32, (inputs, inputs))
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return values


def _accumulate(sums: _Sums, came: torch.Tensor, meant: torch.Tensor, threads: ThreadPoolExecutor) -> None:
    assert sums.values is not None  # finish comes last
    squares, drift = sums.values
    rows = came.reshape(-1, came.shape[-1]).float().contiguous()
    off = (meant - came).reshape(rows.shape).float().contiguous()

    def add(begin: int) -> None:
        part = slice(begin, begin + ROWS)
        squares[part].addmm_(rows[:, part].T, rows)
        drift[part].addmm_(off[:, part].T, rows)

    for _ in threads.map(add, range(0, rows.shape[1], ROWS)):
        pass
    sums.rows += len(rows)
