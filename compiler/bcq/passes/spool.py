# SPDX-License-Identifier: Apache-2.0
"""Packed weights kept on disk instead of in memory until the writer copies them to their place."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.packing import PackedWeight


def spooled(packed: PackedWeight, folder: Path | None) -> PackedWeight:
    """The same weight with its arrays mapped from nameless files in ``folder``; None changes nothing."""
    if folder is None:
        return packed
    arrays = {name: _mapped(array, folder) for name, array in packed.tensors().items()}
    return PackedWeight(**arrays, inputs=packed.inputs, rows=packed.rows, group_size=packed.group_size)


def _mapped(array: NDArray[Any], folder: Path) -> NDArray[Any]:
    """The array, mapped; its file has no name, so the disk is free again when the array is."""
    if array.size == 0:
        return array
    with tempfile.TemporaryFile(dir=folder) as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape)
