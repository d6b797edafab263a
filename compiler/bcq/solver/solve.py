# SPDX-License-Identifier: Apache-2.0
"""Solves one matrix in row blocks: cuts it into groups, runs the method, writes codes and alphas."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import BcqWeight, Float32, ceil_div, check_group_size, pack_bits
from bcq.errors import InputError
from bcq.solver.alternating import alternate
from bcq.solver.greedy import greedy
from bcq.solver.groups import sort_groups
from bcq.solver.levels import Float64, all_signs, as_stored, ordered, sign_table
from bcq.solver.multistart import multistart
from bcq.solver.uniform import clipped_rtn

BLOCK_WEIGHTS = 1 << 19  # weights solved at a time: temporaries stay below about 32 bytes a weight
MAX_WORKERS = 4
SMALLEST_NORMAL = 2.0**-14  # of float16; below it alphas lose digits, and below 2^-25 they become zero


def solve(
    weights: Float32,
    bits: int,
    group_size: int,
    method: str = "multistart",
    offset: bool = False,
    seed: int = 0,
    name: str = "weight",
) -> BcqWeight:
    """Finds planes and alphas for one matrix.

    Args:
        weights: float32 ``[N, K]``, finite.
        bits: q, 1 to 8.
        group_size: g, a multiple of 32, or K.
        method: one of ``bcq.matrices.plan.METHODS``.
        offset: whether each group has an offset.
        seed: seed of random choices; the present methods make none.
        name: of the tensor, for errors.

    Raises:
        InputError: E106 when a weight is NaN, infinite or too large for float16 alphas, or when all weights
            are too small for them.
        ValueError: when shapes or options do not fit.
    """
    rows, inputs = weights.shape
    check_group_size(group_size, inputs)
    groups = ceil_div(inputs, group_size)
    words = np.empty((bits, rows, ceil_div(inputs, 32)), np.uint32)
    alpha = np.empty((bits, rows, groups), np.float16)
    offsets = np.empty((rows, groups), np.float16) if offset else None

    def solve_rows(block: slice) -> None:
        dense = np.ascontiguousarray(weights[block], dtype=np.float32)
        _check_finite(dense, name, block.start)
        signs, coefficients = _solve_block(dense, bits, group_size, method, offset, name)
        words[:, block] = pack_bits(signs)
        alpha[:, block] = coefficients[..., :bits].transpose(2, 0, 1).astype(np.float16)
        if offsets is not None:
            offsets[block] = coefficients[..., bits].astype(np.float16)

    with ThreadPoolExecutor(max_workers=_workers()) as pool:
        for _ in pool.map(solve_rows, _blocks(rows, inputs)):
            pass  # blocks do not depend on each other, so neither does the result on the number of threads
    _check_scale(weights, alpha, offsets, name)
    return BcqWeight(words, alpha, offsets, inputs, group_size)


def relative_error(weights: Float32, solved: BcqWeight) -> float:
    """Sum of squared errors over the sum of squared weights; 0 when both are zero."""
    wrong = total = 0.0
    for block in _blocks(solved.rows, solved.inputs):
        dense = np.asarray(weights[block], dtype=np.float32)
        difference = rows_of(solved, block).dequantize() - dense
        wrong += float(np.einsum("nk,nk->", difference, difference, dtype=np.float64))
        total += float(np.einsum("nk,nk->", dense, dense, dtype=np.float64))
    return wrong / total if total else wrong


def _blocks(rows: int, inputs: int) -> list[slice]:
    step = max(1, BLOCK_WEIGHTS // max(inputs, 1))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def _workers() -> int:
    """Threads: the cores that this process may use, at most MAX_WORKERS, which bounds the memory."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MAX_WORKERS)


def rows_of(weight: BcqWeight, rows: slice) -> BcqWeight:
    """The weight that consists of some rows of another."""
    offset = None if weight.offset is None else weight.offset[rows]
    return BcqWeight(weight.words[:, rows], weight.alpha[:, rows], offset, weight.inputs, weight.group_size)


def _solve_block(
    dense: Float32, bits: int, group_size: int, method: str, offset: bool, name: str
) -> tuple[NDArray[np.uint8], Float64]:
    """Bits ``[q, n, K]`` and coefficients ``[n, G, q (+ 1)]``; a narrower last group is solved on its own."""
    rows, inputs = dense.shape
    whole = inputs - inputs % group_size
    signs, coefficients = [], []
    for part, width in ((dense[:, :whole], group_size), (dense[:, whole:], inputs - whole)):
        if part.size:
            grouped = np.ascontiguousarray(part).reshape(-1, width)
            found = _coefficients(grouped, bits, method, offset)
            _check_range(found, name)
            signs.append(_codes(grouped, found, bits, offset).reshape(bits, rows, -1))
            coefficients.append(found.reshape(rows, -1, found.shape[1]))
    return np.concatenate(signs, axis=2), np.concatenate(coefficients, axis=1)


def _coefficients(grouped: Float32, bits: int, method: str, offset: bool) -> Float64:
    """Coefficients as stored, ``[R, q]`` or ``[R, q + 1]``."""
    if method == "multistart":
        return multistart(grouped, bits, offset)
    if method == "uniform":
        return clipped_rtn(sort_groups(grouped, sign_table(bits, offset)))
    start = ordered(greedy(grouped, bits, offset), bits)
    if method == "greedy":
        return as_stored(start)
    if method == "alternating":
        return as_stored(alternate(sort_groups(grouped, sign_table(bits, offset)), start))
    raise ValueError(f"method: got {method!r}")


def _codes(grouped: Float32, coefficients: Float64, bits: int, offset: bool) -> NDArray[np.uint8]:
    """The planes of the nearest level of each weight, uint8 ``[q, R, width]``, by binary search."""
    levels = np.einsum("rp,lp->rl", coefficients[:, :bits], all_signs(bits))
    if offset:
        levels += coefficients[:, bits:]
    order = np.argsort(levels, axis=1, kind="stable")
    ascending = np.take_along_axis(levels, order, axis=1)
    thresholds = ((ascending[:, 1:] + ascending[:, :-1]) / 2).ravel()
    first = (np.arange(len(grouped), dtype=np.int32) * (2**bits - 1))[:, None] - 1
    index = np.zeros(grouped.shape, np.int32)
    for step in (1 << shift for shift in range(bits - 1, -1, -1)):
        index += np.int32(step) * (grouped > thresholds[first + index + np.int32(step)])
    codes = np.take_along_axis(order.astype(np.uint8), index, axis=1)
    return np.stack([(codes >> (bits - 1 - plane)) & 1 for plane in range(bits)])


def _check_finite(dense: Float32, name: str, begin: int) -> None:
    finite = np.isfinite(dense)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InputError(
            "E106",
            f"{name}: element [{begin + row}, {column}] is {dense[row, column]}, expected finite weights.",
            "The checkpoint is damaged, or training diverged: use an earlier one.",
        )


def _check_range(coefficients: Float64, name: str) -> None:
    if not np.isfinite(coefficients).all():
        raise InputError(
            "E106",
            f"{name}: a weight is too large for float16 scaling factors (limit 65504).",
            "Keep this matrix dense with --set 'NAME=keep'.",
        )


def _check_scale(
    weights: Float32, alpha: NDArray[np.float16], offsets: NDArray[np.float16] | None, name: str
) -> None:
    """Refuses a matrix of which float16 keeps little or nothing; one of zeros alone is exact."""
    stored = [alpha] if offsets is None else [alpha, offsets]
    largest = max(float(np.abs(part).max(initial=0.0)) for part in stored)
    if largest < SMALLEST_NORMAL and weights.any():
        raise InputError(
            "E106",
            f"{name}: the weights are too small for float16 scaling factors: the largest of these is "
            f"{largest:.1e}, expected at least {SMALLEST_NORMAL:.1e}.",
            f"Keep this matrix dense with --set '{name}=keep'.",
        )
