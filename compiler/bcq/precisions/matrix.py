# SPDX-License-Identifier: Apache-2.0
"""Packs one matrix at all of its precisions, or takes them from what is finished."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from bcq.matrices.resume import Finished, key_of
from bcq.packing import PackedWeight

if TYPE_CHECKING:
    from bcq.bcq import Float32
    from bcq.files.base import BaseMatrix

METHOD = "nested"
Precisions = dict[int, tuple[str, PackedWeight, float]]  # by bits: key, weight, relative error


def precisions(dense: Float32, matrix: BaseMatrix, seed: int, finished: Finished) -> Precisions:
    """Every precision of a matrix, the highest first; all have the same codes.

    Args:
        dense: float32 ``[N, K]``.
        matrix: with further precisions.
        seed: of the solver.
        finished: where packed matrices wait.

    Raises:
        InputError: E106 for NaN or infinity.
    """
    sizes = {matrix.bits: matrix.group_size, **dict(reversed(matrix.also))}
    how = f"{METHOD} {json.dumps(sorted(sizes.items()))}"
    keys = {bits: key_of(dense, bits, size, how, matrix.offset, seed) for bits, size in sizes.items()}
    found = {bits: finished.find(key) for bits, key in keys.items()}
    if not all(found.values()):
        found = dict(_solved(dense, matrix, sizes, seed, keys, finished))
    return {bits: (keys[bits], *kept) for bits, kept in found.items() if kept is not None}


def _solved(
    dense: Float32,
    matrix: BaseMatrix,
    sizes: dict[int, int],
    seed: int,
    keys: dict[int, str],
    store: Finished,
) -> dict[int, tuple[PackedWeight, float]]:
    from bcq.precisions.solve import solve_nested
    from bcq.solver import relative_error

    nested = solve_nested(np.ascontiguousarray(dense), sizes, matrix.offset, seed, matrix.stored)
    kept = {}
    for bits, packed in nested.packed().items():
        error = relative_error(dense, nested.at(bits))
        kept[bits] = store.keep(keys[bits], packed, error), error
    return kept
