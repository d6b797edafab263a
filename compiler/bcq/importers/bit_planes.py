# SPDX-License-Identifier: Apache-2.0
"""Formats that store bit planes already: LUT-GEMM's layout and AnyBCQ checkpoints, which use it.

    qweight         int32 or uint32  [K / 32, q, N]   bit j of word c is input 32 c + j; 1 is +1, 0 is -1
    alpha           float            [G, q, N]        LUT-GEMM
    q_bias          float            [G, N]           LUT-GEMM, optional: the offset
    alpha_<b>       float16          [G, b, N]        AnyBCQ: for the first b planes, one set per precision
    beta_<b>        float16          [G, N]           AnyBCQ: the offset at that precision

W[n, k] = sum_i alpha[k / g, i, n] B_i[n, k] + offset[k / g, n]. Sources: Park et al. 2022 (arXiv 2206.09557),
Park et al. 2025 (arXiv 2510.10467).
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np

from bcq import contract
from bcq.bcq import Words
from bcq.errors import InputError, UnsupportedError, UsageError
from bcq.files.checkpoint import Checkpoint
from bcq.importers.factors import Scales
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

_WORD = 32
_WHERE = "anybcq in config.json"
_ANY_PART = re.compile(r"(qweight|q_bias|(alpha|beta)_\d+)")


def read_lut_gemm(checkpoint: Checkpoint) -> Matrices:
    """All matrices in LUT-GEMM's layout; no tensor is read yet.

    Raises:
        InputError: E102, E103 or E107 for a tensor of another type or shape, or that is missing.
        UnsupportedError: E401 for groups or planes that the operators do not have.
    """
    found = (
        _matrix(checkpoint, stem, f"{stem}.alpha", f"{stem}.q_bias", _given(checkpoint, stem, ("alpha",)))
        for stem in stems(checkpoint)
    )
    return {matrix.name: matrix for matrix in found}


def read_any_bcq(checkpoint: Checkpoint, bits: int | None = None) -> Matrices:
    """All matrices of an AnyBCQ checkpoint at one of its precisions; no tensor is read yet.

    Args:
        checkpoint: the opened folder.
        bits: the precision; the highest one when None.

    Raises:
        InputError: E102, E103 or E107 for a tensor of another type or shape, or that is missing.
        UsageError: E202 for a precision that the checkpoint does not have.
        UnsupportedError: E401 for groups that the operators do not have.
    """
    section = checkpoint.config.get("anybcq")
    if not isinstance(section, dict):
        raise InputError("E102", f"{_WHERE} is {section!r}, expected an object.")
    low, high = (setting(section, f"{which}_precision", None, (int,), _WHERE) for which in ("seed", "parent"))
    if low is None or high is None or not 1 <= low <= high <= contract.MAX_BITS:
        raise InputError("E102", f"{_WHERE}: the precisions are {low} to {high}, expected 1 to 8.")
    chosen = high if bits is None else bits
    if not low <= chosen <= high:
        raise UsageError("E202", f"--bits: got {chosen}, the checkpoint has {low} to {high}.")
    matrices = {}
    for stem in stems(checkpoint):
        checkpoint.entry(f"{stem}.beta_{chosen}")  # every precision has offsets
        parts = _any_parts(checkpoint, stem)
        matrix = _matrix(checkpoint, stem, f"{stem}.alpha_{chosen}", f"{stem}.beta_{chosen}", parts)
        matrices[matrix.name] = matrix
    return matrices


def _given(checkpoint: Checkpoint, stem: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    names = [f"{stem}.{part}" for part in ("qweight", *parts, "q_bias")]
    return tuple(name for name in names if name in checkpoint.tensors)


def _any_parts(checkpoint: Checkpoint, stem: str) -> tuple[str, ...]:
    prefix = f"{stem}."
    return tuple(
        name
        for name in checkpoint.names()
        if name.startswith(prefix) and _ANY_PART.fullmatch(name.removeprefix(prefix))
    )


def _matrix(
    checkpoint: Checkpoint, stem: str, alpha: str, offset: str, tensors: tuple[str, ...]
) -> SourceMatrix:
    chunks, planes, rows = check_rank(checkpoint, f"{stem}.qweight", 3)
    groups, bits, _ = check_rank(checkpoint, alpha, 3)
    inputs = chunks * _WORD
    if bits > planes or inputs % groups:
        raise InputError(
            "E103",
            f"{alpha}: got {groups} groups and {bits} planes, "
            f"{stem}.qweight has {inputs} inputs and {planes} planes.",
            "Copy the checkpoint again.",
        )
    if planes > contract.MAX_BITS:
        raise UnsupportedError("E401", f"'{stem}' has {planes} planes, expected at most {contract.MAX_BITS}.")
    check_shape(checkpoint, alpha, (groups, bits, rows))
    if offset in checkpoint.tensors:
        check_shape(checkpoint, offset, (groups, rows))
    check_group_size(stem, inputs // groups, inputs)
    return SourceMatrix(
        name=f"{stem}.weight",
        rows=rows,
        inputs=inputs,
        bits=bits,
        group_size=inputs // groups,
        tensors=tensors,
        read_scales=partial(_scales, checkpoint, alpha, offset),
        read_words=partial(_words, checkpoint, stem, bits),
    )


def _scales(checkpoint: Checkpoint, alpha: str, offset: str) -> Scales:
    factors = floats(checkpoint, alpha, checkpoint.shape(alpha)).astype(np.float64)
    groups, _, rows = factors.shape
    added: Any = np.zeros((groups, rows))
    if offset in checkpoint.tensors:
        added = floats(checkpoint, offset, (groups, rows)).astype(np.float64)
    return Scales(factors.transpose(1, 2, 0), added.T)


def _words(checkpoint: Checkpoint, stem: str, bits: int) -> Words:
    stored = words(checkpoint, f"{stem}.qweight")
    return np.ascontiguousarray(stored[:, :bits].transpose(1, 2, 0))
