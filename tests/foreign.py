# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as other programs write them, packed number by number from the description of each layout.

Nothing here is shared with the importers: loops and Python integers, so both can only agree by being right.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Tensors = dict[str, NDArray[Any]]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Grid:
    """A random integer grid: levels v, scales s and zero-points z of one matrix ``[N, K]``.

    Args:
        rows: N.
        inputs: K.
        bits: q.
        group_size: g.
        seed: of everything random.
        symmetric: all zero-points are 2^(q-1).
        dtype: of the scales.
    """

    def __init__(
        self,
        rows: int,
        inputs: int,
        bits: int = 4,
        group_size: int = 32,
        seed: int = 0,
        symmetric: bool = False,
        dtype: Any = np.float16,
    ) -> None:
        random = np.random.default_rng(seed)
        groups = -(-inputs // group_size)
        self.bits, self.group_size = bits, group_size
        self.levels = random.integers(0, 2**bits, (rows, inputs))
        self.scales = random.uniform(0.01, 0.02, (rows, groups)).astype(dtype)
        self.zeros = random.integers(1, 2**bits, (rows, groups))
        if symmetric:
            self.zeros[:] = 2 ** (bits - 1)

    def dense(self) -> NDArray[np.float64]:
        """What the grid means, in exact arithmetic: (v - z) s."""
        group_of = np.arange(self.levels.shape[1]) // self.group_size
        scales = self.scales.astype(np.float64)
        return (self.levels - self.zeros[:, group_of]) * scales[:, group_of]


def stream(values: Any, bits: int) -> list[int]:
    """Words of 32 bits that hold the values one after the other, the first in the lowest bits."""
    whole = sum(int(value) << (bits * place) for place, value in enumerate(values))
    return [(whole >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(values) * bits // 32))]


def signed(words: Any) -> NDArray[np.int32]:
    """Words as PyTorch stores them, which has no unsigned ones."""
    return np.array(words, np.uint32).astype(np.int32)


def gptq(grid: Grid, version: str = "gptq") -> Tensors:
    """GPTQ: words of q-bit fields along the inputs, zero-points along the outputs; v1 stores z - 1."""
    stored = grid.zeros - 1 if version == "gptq" else grid.zeros
    inputs = grid.levels.shape[1]
    return {
        "qweight": np.ascontiguousarray(signed([stream(row, grid.bits) for row in grid.levels]).T),
        "qzeros": signed([stream(group, grid.bits) for group in stored.T]),
        "scales": np.ascontiguousarray(grid.scales.T),
        "g_idx": np.array([k // grid.group_size for k in range(inputs)], np.int32),
    }


def awq(grid: Grid) -> Tensors:
    """AWQ, version "gemm": eight outputs a word in the order 0 2 4 6 1 3 5 7."""

    def words(values: NDArray[Any]) -> NDArray[np.int32]:
        eights = [[row[at : at + 8] for at in range(0, len(row), 8)] for row in values]
        return signed([[stream([eight[k] for k in AWQ_ORDER], 4)[0] for eight in row] for row in eights])

    return {
        "qweight": words(grid.levels.T),
        "qzeros": words(grid.zeros.T),
        "scales": np.ascontiguousarray(grid.scales.T),
    }


def plane_words(signs: NDArray[Any]) -> NDArray[np.int32]:
    """LUT-GEMM and AnyBCQ: signs ``[q, N, K]`` to ``[K / 32, q, N]``, bit j of a word for input 32 c + j."""
    planes, rows, inputs = signs.shape
    words = [
        [[stream(signs[i, n, 32 * c : 32 * c + 32] > 0, 1)[0] for n in range(rows)] for i in range(planes)]
        for c in range(inputs // 32)
    ]
    return signed(words)


def rewrite(folder: Path, change: Callable[[str, NDArray[Any]], Tensors | None], **config: Any) -> None:
    """Replaces tensors of a saved model in place.

    Args:
        folder: a Hugging Face folder with one safetensors file.
        change: gets name and values of every matrix, returns what stands there instead, or None.
        config: entries to add to ``config.json``.
    """
    tensors: Tensors = {}
    for name, values in load_file(folder / "model.safetensors").items():
        made = change(name, values) if values.ndim == 2 else None
        tensors.update({name: values} if made is None else made)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def quantize_as(
    folder: Path,
    pack: Callable[[Grid], Tensors],
    turned: bool = False,
    skip: tuple[str, ...] = ("wte", "wpe", "embed", "lm_head"),
    **options: Any,
) -> dict[str, Grid]:
    """Replaces the matrices of a saved model by random grids; the grids by the names of the matrices.

    Args:
        folder: a Hugging Face folder.
        pack: one of the layouts above.
        turned: the model stores ``[K, N]``.
        skip: parts of names that stay dense.
        options: of `Grid`.
    """
    grids: dict[str, Grid] = {}

    def change(name: str, values: NDArray[Any]) -> Tensors | None:
        if any(part in name for part in skip):
            return None
        rows, inputs = values.T.shape if turned else values.shape
        grids[name] = Grid(rows, inputs, seed=len(grids), **options)
        stem = name.removesuffix(".weight")
        return {f"{stem}.{part}": tensor for part, tensor in pack(grids[name]).items()}

    rewrite(folder, change)
    return grids


def describe(folder: Path, **section: Any) -> None:
    """Writes the ``quantization_config``."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": section}))
