# SPDX-License-Identifier: Apache-2.0
"""AWQ checkpoints as AutoAWQ writes them in version "gemm": integer grids of 4 bits, eight outputs a word.

    qweight  int32    [K, N / 8]
    qzeros   int32    [G, N / 8]
    scales   float16  [G, N]

Field i of a word, from the lowest bits on, is output 0, 2, 4, 6, 1, 3, 5, 7 of its eight; zero-points
likewise. W[n, k] = (v[k, n] - z[k / g, n]) scales[k / g, n].
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import Words, ceil_div
from bcq.errors import InputError, UnsupportedError
from bcq.files.checkpoint import Checkpoint
from bcq.importers.factors import Scales
from bcq.importers.fields import planes_of, unpack_fields
from bcq.importers.source import (
    Matrices,
    SourceMatrix,
    check_group_size,
    check_rank,
    check_shape,
    floats,
    setting,
    stems,
    words,
)

BITS = 4
VERSION = "gemm"
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output of each field of a word
_WHERE = "quantization_config of AWQ"


def read(checkpoint: Checkpoint, section: dict[str, Any]) -> Matrices:
    """All AWQ matrices of a folder; no tensor is read yet.

    Args:
        checkpoint: the opened folder.
        section: its ``quantization_config``.

    Raises:
        InputError: E102, E103 or E107 for a tensor of another type or shape, or that is missing.
        UnsupportedError: E401 for what `docs/importers.md` lists.
    """
    bits = setting(section, "bits", section.get("w_bit", BITS), (int,), _WHERE)
    if bits != BITS:
        raise UnsupportedError("E401", f"{_WHERE}: bits is {bits!r}, expected {BITS}.")
    version = str(section.get("version", VERSION)).lower()
    if version != VERSION:
        raise UnsupportedError(
            "E401",
            f"{_WHERE}: the version is {version!r}, expected '{VERSION}': others are made for one kernel.",
            f"Quantize again with version '{VERSION}'.",
        )
    group_size = setting(section, "group_size", section.get("q_group_size", 128), (int,), _WHERE)
    found = (_matrix(checkpoint, stem, group_size) for stem in stems(checkpoint))
    return {matrix.name: matrix for matrix in found}


def _matrix(checkpoint: Checkpoint, stem: str, declared: int) -> SourceMatrix:
    inputs, packed = check_rank(checkpoint, f"{stem}.qweight", 2)
    rows = packed * len(_ORDER)
    group_size = inputs if declared == -1 else declared
    if group_size < 1:
        raise InputError("E102", f"{_WHERE}: group_size is {declared}, expected -1 or a size.")
    groups = ceil_div(inputs, group_size)
    check_shape(checkpoint, f"{stem}.scales", (groups, rows))
    check_shape(checkpoint, f"{stem}.qzeros", (groups, packed))
    check_group_size(stem, group_size, inputs)
    return SourceMatrix(
        name=f"{stem}.weight",
        rows=rows,
        inputs=inputs,
        bits=BITS,
        group_size=group_size,
        tensors=tuple(f"{stem}.{part}" for part in ("qweight", "qzeros", "scales")),
        read_scales=partial(_scales, checkpoint, stem, (groups, rows)),
        read_words=partial(_words, checkpoint, stem),
    )


def _scales(checkpoint: Checkpoint, stem: str, shape: tuple[int, int]) -> Scales:
    scales = floats(checkpoint, f"{stem}.scales", shape)
    return Scales.of_grid(scales.T, _fields(checkpoint, f"{stem}.qzeros").T, BITS)


def _words(checkpoint: Checkpoint, stem: str) -> Words:
    return planes_of(np.ascontiguousarray(_fields(checkpoint, f"{stem}.qweight").T), BITS)


def _fields(checkpoint: Checkpoint, name: str) -> NDArray[np.uint8]:
    """The fields of a tensor in the order of the outputs, uint8 ``[rows of words, N]``."""
    packed = words(checkpoint, name)
    fields = unpack_fields(packed, BITS, packed.shape[1] * len(_ORDER)).reshape(len(packed), -1, len(_ORDER))
    values = np.empty_like(fields)
    values[:, :, list(_ORDER)] = fields
    return values.reshape(len(packed), -1)
