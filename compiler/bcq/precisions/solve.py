# SPDX-License-Identifier: Apache-2.0
"""Planes that serve several precisions: the first 2, 3, 4 planes of one matrix, each with factors of its own.

The codes of a weight are chosen for all precisions at once: of the 2^q combinations c, the one whose prefixes
miss it least, sum_b s_b (w - L_b(c))^2, where the shares s_b make one per cent of error count alike at every
precision. The square of w is the same for all c, so a choice is one line in w for each combination. The
factors of each precision are the least-squares fit to the prefix that it reads, in groups of its own size.
Decision: ``docs/decisions/0017-nested-precision.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bcq import packing
from bcq.bcq import BcqWeight, Float16, Float32, Words, ceil_div, check_group_size, pack_bits, unpack_bits
from bcq.packing import PackedWeight
from bcq.solver import relative_error, solve
from bcq.solver.groups import RIDGE, solve_positive
from bcq.solver.levels import Float64, all_signs, as_stored

ROUNDS = 8
_ROWS_AT_ONCE = 64
LEAST_ERROR = 1e-12  # relative: a matrix that few planes hold exactly still has a finite weight
Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Precision:
    """The factors of one precision.

    Attributes:
        alpha: float16 ``[b, N, G]``.
        offset: float16 ``[N, G]``, or None.
        group_size: g of this precision.
    """

    alpha: Float16
    offset: Float16 | None
    group_size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return self.alpha.nbytes + (0 if self.offset is None else self.offset.nbytes)


@dataclass(frozen=True)
class NestedWeight:
    """One matrix at several precisions.

    Attributes:
        words: uint32 ``[q, N, ceil(K / 32)]``, the planes of the highest precision.
        precisions: factors by number of planes.
        inputs: K.
    """

    words: Words
    precisions: Mapping[int, Precision]
    inputs: int

    def at(self, bits: int) -> BcqWeight:
        """The matrix with its first ``bits`` planes.

        Raises:
            KeyError: when it was not solved for them.
        """
        chosen = self.precisions[bits]
        return BcqWeight(self.words[:bits], chosen.alpha, chosen.offset, self.inputs, chosen.group_size)

    def packed(self) -> dict[int, PackedWeight]:
        """Every precision as a file holds it, the highest first; all have the same codes."""
        packed = {bits: packing.pack(self.at(bits)) for bits in sorted(self.precisions, reverse=True)}
        codes = packed[max(packed)].codes
        return {bits: packing.among(weight, codes) for bits, weight in packed.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of planes and all factors, without the padding of a file."""
        return self.words.nbytes + sum(precision.nbytes for precision in self.precisions.values())


def solve_nested(
    weights: Float32,
    group_sizes: Mapping[int, int],
    offset: bool = False,
    seed: int = 0,
    name: str = "weight",
    rounds: int = ROUNDS,
) -> NestedWeight:
    """Solves one matrix for several precisions; data-free.

    Args:
        weights: float32 ``[N, K]``.
        group_sizes: g by number of planes, for example ``{2: 128, 3: 256, 4: 128}``; 0 is one group a row.
        offset: whether each group has an offset, at every precision.
        seed: handed to the solver of the starts.
        name: of the matrix, for errors.
        rounds: alternations of codes and factors; each lowers the summed error.

    Raises:
        ValueError: for no precision, or a group size that the operators do not have.
        InputError: E106 for NaN or infinity.
    """
    apart = solve_apart(weights, group_sizes, offset, seed, name)
    return joined(weights, apart, rounds)


def solve_apart(
    weights: Float32,
    group_sizes: Mapping[int, int],
    offset: bool = False,
    seed: int = 0,
    name: str = "weight",
) -> dict[int, BcqWeight]:
    """Each precision by itself, with planes of its own; arguments and errors as :func:`solve_nested`."""
    if not group_sizes:
        raise ValueError("group_sizes: got none, expected one for each precision")
    inputs = weights.shape[1]
    sizes = {bits: group_sizes[bits] or inputs for bits in sorted(group_sizes)}
    for size in sizes.values():
        check_group_size(size, inputs)
    return {
        bits: solve(weights, bits, size, offset=offset, seed=seed, name=name) for bits, size in sizes.items()
    }


def joined(weights: Float32, apart: Mapping[int, BcqWeight], rounds: int = ROUNDS) -> NestedWeight:
    """Planes for all precisions, of the sizes that :func:`solve_apart` solved; as :func:`solve_nested`."""
    shares = {bits: 1 / max(relative_error(weights, solved), LEAST_ERROR) for bits, solved in apart.items()}
    sizes = {bits: solved.group_size for bits, solved in apart.items()}
    offset = any(solved.offset is not None for solved in apart.values())
    problem = _Problem(weights, sizes, shares, offset)
    results = [problem.alternate(start, rounds) for start in _starts(problem, apart)]
    errors = np.stack([error for _, error in results])
    best = np.choose(errors.argmin(axis=0)[:, None], [codes for codes, _ in results]).astype(np.uint8)
    return problem.finish(best)


def refit(weights: Float32, solved: BcqWeight, group_sizes: Mapping[int, int]) -> NestedWeight:
    """Adds precisions to a solution whose planes and factors stay as they are.

    Args:
        weights: float32 ``[N, K]``.
        solved: the highest precision, however it was solved.
        group_sizes: g of each lower precision by its number of planes; 0 is one group a row.

    Raises:
        ValueError: for a precision that is not lower, or a group size that the operators do not have.
    """
    sizes = {bits: group_sizes[bits] or solved.inputs for bits in sorted(group_sizes)}
    if any(not 0 < bits < solved.bits for bits in sizes):
        raise ValueError(f"group_sizes: got {sorted(sizes)} planes, expected fewer than {solved.bits}")
    for size in sizes.values():
        check_group_size(size, solved.inputs)
    own = {solved.bits: solved.group_size}
    problem = _Problem(
        weights, {**sizes, **own}, dict.fromkeys([*sizes, *own], 1.0), solved.offset is not None
    )
    fitted = problem.finish(codes_of(solved.words, solved.inputs))
    kept = Precision(solved.alpha, solved.offset, solved.group_size)
    return NestedWeight(solved.words, {**fitted.precisions, solved.bits: kept}, solved.inputs)


@dataclass(frozen=True)
class _Problem:
    """What does not change while codes and factors do."""

    weights: Float32
    sizes: dict[int, int]
    shares: dict[int, float]
    offset: bool

    @property
    def bits(self) -> int:
        """The highest precision."""
        return max(self.sizes)

    def alternate(self, codes: Codes, rounds: int) -> tuple[Codes, Float64]:
        """Codes after some rounds, and the summed error of each row ``[N]`` with factors as stored."""
        for _ in range(rounds):
            codes = self.assign(self.fit(codes))
        codes = self.assign(self.stored(codes))
        return codes, self.errors(self.stored(codes), codes)

    def fit(self, codes: Codes) -> dict[int, Float64]:
        """Least-squares coefficients by precision, ``[N, G, b]`` or with the offset ``[N, G, b + 1]``."""
        return {bits: self._fit_one(codes >> np.uint8(self.bits - bits), bits) for bits in self.sizes}

    def stored(self, codes: Codes) -> dict[int, Float64]:
        """The same, rounded to float16."""
        return {bits: as_stored(fitted) for bits, fitted in self.fit(codes).items()}

    def _fit_one(self, prefix: Codes, bits: int) -> Float64:
        rows, inputs = prefix.shape
        group_of = np.arange(inputs) // self.sizes[bits]
        groups, levels = ceil_div(inputs, self.sizes[bits]), 2**bits
        cells = ((np.arange(rows)[:, None] * groups + group_of) * levels + prefix).ravel()
        shape = (rows * groups, levels)
        counts = np.bincount(cells, minlength=shape[0] * levels).reshape(shape).astype(np.float64)
        sums = np.bincount(cells, self.weights.ravel(), shape[0] * levels).reshape(shape)
        signs = self.signs(bits)
        planes = signs.shape[1]
        matrix: Float64 = np.einsum("rl,lp,lk->pkr", counts, signs, signs, optimize=True)
        matrix[np.arange(planes), np.arange(planes)] += RIDGE * self.sizes[bits]
        target: Float64 = np.einsum("rl,lp->pr", sums, signs)
        fitted: Float64 = solve_positive(matrix, target).T.reshape(rows, groups, planes)
        return fitted

    def signs(self, bits: int) -> Float64:
        """float64 ``[2^b, b]`` or, with an offset, ``[2^b, b + 1]``: what each code multiplies."""
        signs = all_signs(bits)
        return np.hstack([signs, np.ones((len(signs), 1))]) if self.offset else signs

    def assign(self, fitted: dict[int, Float64]) -> Codes:
        """The code of every weight that errs least over all precisions."""
        rows, inputs = self.weights.shape
        width = self.segment
        padded = np.pad(self.weights, ((0, 0), (0, -inputs % width))).reshape(rows, -1, width)
        slopes, heights = self._lines(fitted, padded.shape[1])
        codes = np.empty(padded.shape, np.uint8)
        for block in _blocks(rows):
            codes[block] = _cheapest(padded[block], slopes[block], heights[block])
        return np.ascontiguousarray(codes.reshape(rows, -1)[:, :inputs])

    @property
    def segment(self) -> int:
        """Inputs that share their factors at every precision."""
        inputs = self.weights.shape[1]
        return math.gcd(*(size for size in self.sizes.values() if size < inputs)) or inputs

    def _lines(self, fitted: dict[int, Float64], segments: int) -> tuple[Float32, Float32]:
        """What each combination costs a weight w but for w^2: slope and height, float32 ``[N, S, 2^q]``."""
        slopes = np.zeros((len(self.weights), segments, 2**self.bits))
        heights = np.zeros_like(slopes)
        for bits, share in self.shares.items():
            group_of = np.arange(segments) * self.segment // self.sizes[bits]
            levels = np.einsum("ngp,lp->ngl", fitted[bits], self.signs(bits))[:, group_of]
            every = np.repeat(levels, 2 ** (self.bits - bits), axis=2)
            slopes -= 2 * share * every
            heights += share * np.square(every)
        return slopes.astype(np.float32), heights.astype(np.float32)

    def errors(self, fitted: dict[int, Float64], codes: Codes) -> Float64:
        """The summed error of each row."""
        total = np.zeros(len(codes))
        for bits, share in self.shares.items():
            levels = np.einsum("ngp,lp->ngl", fitted[bits], self.signs(bits))
            group_of = np.arange(codes.shape[1]) // self.sizes[bits]
            prefix = codes >> np.uint8(self.bits - bits)
            for block in _blocks(len(codes)):
                rows = np.arange(len(codes))[block, None]
                missed = self.weights[block] - levels[rows, group_of, prefix[block]]
                total[block] += share * np.square(missed).sum(axis=1)
        return total

    def finish(self, codes: Codes) -> NestedWeight:
        """Planes and float16 factors of the final codes."""
        precisions = {}
        for bits, fitted in self.fit(codes).items():
            half = np.moveaxis(fitted.astype(np.float16), -1, 0)
            offset = np.ascontiguousarray(half[bits]) if self.offset else None
            precisions[bits] = Precision(np.ascontiguousarray(half[:bits]), offset, self.sizes[bits])
        planes = [pack_bits((codes >> place) & 1) for place in reversed(range(self.bits))]
        return NestedWeight(np.stack(planes), precisions, self.weights.shape[1])


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _ROWS_AT_ONCE):
        yield slice(start, start + _ROWS_AT_ONCE)


def _cheapest(weights: Float32, slopes: Float32, heights: Float32) -> Codes:
    """The line that is lowest at each weight, the first of equal ones.

    Args:
        weights: float32 ``[N, S, width]``.
        slopes: float32 ``[N, S, lines]``; lines come one after the other, over all weights at once.
        heights: likewise.
    """
    codes = np.zeros(weights.shape, np.uint8)
    least = slopes[:, :, :1] * weights
    least += heights[:, :, :1]
    for line in range(1, slopes.shape[2]):
        cost = slopes[:, :, line : line + 1] * weights
        cost += heights[:, :, line : line + 1]
        lower = cost < least
        np.copyto(codes, np.uint8(line), where=lower)
        np.minimum(least, cost, out=least)
    return codes


def codes_of(words: Words, inputs: int) -> Codes:
    """Planes ``[q, N, ceil(K / 32)]`` as numbers, plane 1 the highest bit: uint8 ``[N, K]``."""
    codes = np.zeros((words.shape[1], inputs), np.uint8)
    for plane in unpack_bits(words, inputs):
        codes = (codes << np.uint8(1)) | plane
    return codes


def _starts(problem: _Problem, apart: Mapping[int, BcqWeight]) -> Iterator[Codes]:
    """Codes to begin with: the best of the highest precision, and plane after plane from the lowest one."""
    yield codes_of(apart[problem.bits].words, problem.weights.shape[1])
    lowest = min(problem.sizes)
    codes = codes_of(apart[lowest].words, problem.weights.shape[1])
    made = apart[lowest].dequantize()
    for bits in range(lowest + 1, problem.bits + 1):
        codes = (codes << np.uint8(1)) | (problem.weights > made).astype(np.uint8)
        size = problem.sizes.get(bits, problem.sizes[problem.bits])
        grown = _Problem(problem.weights, {bits: size}, {bits: 1.0}, problem.offset)
        made = grown.finish(codes).at(bits).dequantize()
    yield codes
