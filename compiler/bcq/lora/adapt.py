# SPDX-License-Identifier: Apache-2.0
"""A LoRA's change said with the codes of a base: new factors by least squares, and how much of it they hold.

A group of g inputs has q factors (and an offset): of a change in g directions they can follow q (+ 1). What
is lost is measured for every matrix, and too much is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.adapters.adapter import Adapter, Alphas
from bcq.bcq import BcqWeight, Float32, unpack_bits
from bcq.errors import InputError, ParityFailure, UsageError
from bcq.files.base import BaseMatrix, QuantizedBase
from bcq.lora.checkpoint import Lora, LowRank, find_name
from bcq.packing import unpack

LEAST = 0.5  # of the change that must be retained
PARTS = ("all", "alpha_1")
_ROWS = 256  # solved at once: signs of a block take 256 K q floats


@dataclass(frozen=True)
class Retained:
    """What became of one matrix's change D; D' is the change of the values that are computed with.

    Attributes:
        name: of the matrix.
        size: squared size of D over that of the base's matrix.
        retained: <D', D> / <D, D>: the share of D that D' holds; 1 is all.
        error: |D' - D|^2 / |D|^2.
        change: squared size of D, the weight of this matrix in the whole.
    """

    name: str
    size: float
    retained: float
    error: float
    change: float


def adapt(base: QuantizedBase, lora: Lora, name: str, parts: str = "all") -> tuple[Adapter, list[Retained]]:
    """The adapter of a base that comes closest to a LoRA; its codes stay as they are.

    Dense tensors of the base take the LoRA's change exactly.

    Args:
        base: an opened base.
        lora: a LoRA of the model that the base was made of.
        name: of the adapter.
        parts: ``"all"`` solves every factor, and the offset where the base has one; ``"alpha_1"`` only the
            first, which makes the smallest adapter.

    Returns:
        The adapter, and what became of each matrix that the LoRA changes.

    Raises:
        UsageError: E202 for other parts or a bad name.
        InputError: E302 for a change of a tensor that the base lacks or that has another shape; E106 for
            factors that float16 cannot hold.
    """
    if parts not in PARTS:
        raise UsageError("E202", f"parts: got {parts!r}, expected one of {', '.join(PARTS)}.")
    alphas: dict[str, Alphas] = {}
    found: list[Retained] = []
    whole = [name for name in lora.replaced if name not in lora.changes]  # PEFT repeats changed embeddings
    dense = dict(_replaced(base, lora, parameter) for parameter in whole)
    for parameter, change in lora.changes.items():
        matrix = _matrix(base, parameter)
        if matrix is None:
            stored, array = _dense_change(base, lora, parameter, change)
            dense[stored] = array
            continue
        _check_shape(lora, parameter, change.shape, (matrix.rows, matrix.inputs))
        weight = unpack(base.packed(matrix.stored))
        delta = change.delta()
        solved = project(weight, delta, parts)
        alphas[matrix.stored] = solved
        found.append(_retained(matrix.name, weight, solved, delta))
    made = {"method": "lora", "parts": parts, "retained": round(total_retained(found), 6)}
    return Adapter(name, base.base_hash, alphas, dense, made), found


def total_retained(found: Sequence[Retained]) -> float:
    """The share of the whole change that is retained; 1 when no packed matrix changes."""
    whole = sum(one.change for one in found)
    return sum(one.retained * one.change for one in found) / whole if whole else 1.0


def check_retained(found: Sequence[Retained], least: float = LEAST) -> None:
    """The gate.

    Raises:
        ParityFailure: E503 when less of the change is retained.
    """
    total = total_retained(found)
    if total < least:
        worst = min(found, key=lambda one: one.retained)
        raise ParityFailure(
            "E503",
            f"{total:.1%} of the LoRA's change is retained, expected at least {least:.0%};"
            f" the least of '{worst.name}' ({worst.retained:.1%}).",
            "Quantize the merged model (`bcq quantize MODEL --lora DIR`), tune the base (`bcq tune`), or"
            " accept it with --allow-loss.",
        )


def project(weight: BcqWeight, delta: Float32, parts: str = "all") -> Alphas:
    """Factors whose values are nearest to ``weight + delta``, by least squares in every group.

    The base's own factors are left where they are and the change's projection is added: where they are the
    best for the original matrix, the sum is the best for the changed one, and where they were chosen on
    calibration text, that choice stays.

    Args:
        weight: the base's matrix.
        delta: float32 ``[N, K]``.
        parts: as in `adapt`.
    """
    offset = parts == "all" and weight.offset is not None
    blocks = [
        _projected(weight, delta, slice(first, first + _ROWS), parts, offset)
        for first in range(0, weight.rows, _ROWS)
    ]
    change = np.concatenate(blocks)  # [N, G, factors]
    alpha_1 = _added(weight.alpha[0], change[..., 0])
    if parts == "alpha_1":
        return Alphas(alpha_1)
    rest = _added(weight.alpha[1:], np.moveaxis(change[..., 1 : weight.bits], -1, 0))
    if weight.offset is None:
        return Alphas(alpha_1, rest)
    return Alphas(alpha_1, rest, _added(weight.offset, change[..., weight.bits]))


def _projected(
    weight: BcqWeight, delta: Float32, rows: slice, parts: str, offset: bool
) -> NDArray[np.float64]:
    """Coefficients ``[rows, G, factors]`` of a change in the planes (and ones) of its groups."""
    planes = weight.words[:1] if parts == "alpha_1" else weight.words
    signs = unpack_bits(planes[:, rows], weight.inputs).astype(np.float32) * 2 - 1
    if offset:
        signs = np.concatenate([signs, np.ones_like(signs[:1])])
    padding = [(0, 0), (0, 0), (0, weight.groups * weight.group_size - weight.inputs)]
    width = min(weight.group_size, weight.inputs)
    if weight.groups > 1:
        signs = np.pad(signs, padding)
        delta = np.pad(delta[rows], padding[1:])
    else:
        delta = delta[rows]
    signs = signs.reshape(*signs.shape[:2], weight.groups, width)
    delta = delta.reshape(delta.shape[0], weight.groups, width)
    normal = np.einsum("inga,jnga->ngij", signs, signs, optimize=True).astype(np.float64)
    right = np.einsum("inga,nga->ngi", signs, delta, optimize=True).astype(np.float64)
    solved: NDArray[np.float64] = np.einsum("ngij,ngj->ngi", np.linalg.pinv(normal, hermitian=True), right)
    return solved


def _added(factors: NDArray[Any], change: NDArray[np.float64]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # an infinite factor is refused by the adapter, with its name
        return (factors.astype(np.float64) + change).astype(np.float16)


def _retained(name: str, weight: BcqWeight, solved: Alphas, delta: Float32) -> Retained:
    rest = weight.alpha[1:] if solved.alpha_rest is None else solved.alpha_rest
    changed = replace(
        weight,
        alpha=np.concatenate([solved.alpha_1[None], rest]),
        offset=weight.offset if solved.offset is None else solved.offset,
    )
    before = weight.dequantize()
    return measured(name, before, changed.dequantize() - before, delta)


def measured(name: str, before: Float32, change: Float32, delta: Float32) -> Retained:
    """Compares the change of the values that are computed with to the one that was asked for."""
    asked = float(np.square(delta, dtype=np.float64).sum())
    size = float(np.square(before, dtype=np.float64).sum())
    held = float((change.astype(np.float64) * delta).sum())
    missed = float(np.square(change - delta, dtype=np.float64).sum())
    nothing = asked == 0.0
    return Retained(
        name,
        asked / size if size else 0.0,
        1.0 if nothing else held / asked,
        0.0 if nothing else missed / asked,
        asked,
    )


def rows_of(found: Sequence[Retained]) -> list[dict[str, Any]]:
    """Plain values for JSON."""
    return [asdict(one) for one in found]


def _matrix(base: QuantizedBase, parameter: str) -> BaseMatrix | None:
    known = base.find(parameter)
    if known is None:
        stored = find_name(parameter, base.names())
        known = None if stored is None else base.matrices[stored]
    return known


def _dense_change(
    base: QuantizedBase, lora: Lora, parameter: str, change: LowRank
) -> tuple[str, NDArray[np.float32]]:
    """A matrix that the base holds dense, with the change added."""
    stored = _dense_name(base, lora, parameter)
    before = base.checkpoint.read(stored)
    turned = before.shape != change.shape or (lora.fan_in_fan_out and before.shape[0] == before.shape[-1])
    _check_shape(lora, parameter, change.shape[::-1] if turned else change.shape, before.shape)
    delta = change.delta()
    return stored, before + (delta.T if turned else delta)


def _replaced(base: QuantizedBase, lora: Lora, parameter: str) -> tuple[str, NDArray[np.float32]]:
    """A whole tensor of the LoRA, which can only take the place of a dense one."""
    matrix = _matrix(base, parameter)
    if matrix is not None:
        raise InputError(
            "E302",
            f"{lora.folder} replaces '{parameter}' as a whole, which the base holds as codes.",
            "Quantize the merged model (`bcq quantize MODEL --lora DIR`), or keep it dense with --set.",
        )
    stored = _dense_name(base, lora, parameter)
    _check_shape(lora, parameter, lora.replaced[parameter].shape, base.checkpoint.shape(stored))
    return stored, lora.replaced[parameter]


def _dense_name(base: QuantizedBase, lora: Lora, parameter: str) -> str:
    stored = find_name(parameter, base.dense_names())
    if stored is None:
        raise InputError(
            "E302",
            f"{lora.folder} changes '{parameter}', which the base does not have.",
            "Give the base of the model that the LoRA was trained on.",
        )
    return stored


def _check_shape(lora: Lora, parameter: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise InputError(
            "E302",
            f"{lora.folder}: the change of '{parameter}' has shape {list(got)}, expected {list(expected)}.",
            "Give the base of the model that the LoRA was trained on.",
        )
