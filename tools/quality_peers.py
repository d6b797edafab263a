# SPDX-License-Identifier: Apache-2.0
"""Other quantizers, to compare with: round-to-nearest, HQQ's and GPTQ's ways, at any group size.

Each takes weights [N, K] (a torch tensor on the CPU, float32), second moments [K, K] of the inputs or None,
bits and a group size that divides K, and returns what the codes stand for. Scales are rounded to float16.
Bits count codes, 16 for a scale, and ``bits`` for an integer zero point or 16 for HQQ's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RATIOS = [1.0 - 0.025 * step for step in range(29)]  # clipping ratios that are searched
Solver = Callable[[Tensor, "Tensor | None", int, int], Tensor]


@dataclass(frozen=True)
class Grid:
    """Levels ``scale (code - zero)``, codes 0 to 2^bits - 1, one grid a group: tensors ``[..., 1]``."""

    scale: Tensor
    zero: Tensor
    bits: int

    def nearest(self, weights: Tensor) -> Tensor:
        """The nearest level."""
        codes = torch.clamp(torch.round(weights / self.scale + self.zero), 0, 2**self.bits - 1)
        return (codes - self.zero) * self.scale


@dataclass(frozen=True)
class Peer:
    """A method and what its groups cost: ``extra`` bits a group, beside ``bits`` a weight."""

    solve: Solver
    zero_bits: Callable[[int], int]
    calibrated: bool = False

    def cost(self, bits: int, group_size: int) -> float:
        """Bits a weight."""
        return bits + (16 + self.zero_bits(bits)) / group_size


def symmetric_grid(groups: Tensor, bits: int, ratio: float) -> Grid:
    """Levels at odd multiples of half a step, mirrored about zero."""
    half = groups.abs().amax(-1, keepdim=True) * ratio
    scale = _half(2 * half / (2**bits if bits > 1 else 2))
    return Grid(scale, torch.full_like(scale, (2**bits - 1) / 2), bits)


def asymmetric_grid(groups: Tensor, bits: int, ratio: float) -> Grid:
    """Levels from the clipped minimum to the clipped maximum, zero among them."""
    low = groups.amin(-1, keepdim=True).clamp(max=0) * ratio
    high = groups.amax(-1, keepdim=True).clamp(min=0) * ratio
    scale = _half((high - low) / (2**bits - 1))
    return Grid(scale, torch.clamp(torch.round(-low / scale), 0, 2**bits - 1), bits)


def searched(groups: Tensor, bits: int, make: Callable[[Tensor, int, float], Grid]) -> Grid:
    """The grid whose clipping ratio has the least squared error, group by group."""
    best = make(groups, bits, 1.0)
    lowest = ((best.nearest(groups) - groups).square()).sum(-1, keepdim=True)
    for ratio in RATIOS[1:]:
        grid = make(groups, bits, ratio)
        wrong = ((grid.nearest(groups) - groups).square()).sum(-1, keepdim=True)
        better = wrong < lowest
        lowest = torch.where(better, wrong, lowest)
        best = Grid(
            torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero), bits
        )
    return best


def rtn_symmetric(weights: Tensor, moments: Tensor | None, bits: int, group_size: int) -> Tensor:
    """Round to nearest on a symmetric grid with searched clipping."""
    return _rtn(weights, bits, group_size, symmetric_grid)


def rtn_asymmetric(weights: Tensor, moments: Tensor | None, bits: int, group_size: int) -> Tensor:
    """Round to nearest with an integer zero point and searched clipping."""
    return _rtn(weights, bits, group_size, asymmetric_grid)


def hqq(weights: Tensor, moments: Tensor | None, bits: int, group_size: int) -> Tensor:
    """Half-quadratic quantization (Badri and Shaji 2023): the zero point is fitted under an l_0.7 norm."""
    groups = weights.reshape(len(weights), -1, group_size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = _half((high - low) / (2**bits - 1))
    zero, strength, best, lowest = -low / scale, 10.0, groups, float("inf")
    for _ in range(20):
        codes = torch.clamp(torch.round(groups / scale + zero), 0, 2**bits - 1)
        dense = (codes - _half(zero, 0.0)) * scale
        error = float((groups - dense).abs().mean())
        if error >= lowest:
            break
        best, lowest = dense, error
        rest = groups - dense
        shrunk = rest.abs() - rest.abs().clamp(min=1e-8).pow(0.7 - 1) / strength
        sparse = torch.sign(rest) * shrunk.clamp(min=0)
        zero = (codes - (groups - sparse) / scale).mean(-1, keepdim=True)
        strength *= 1.01
    return best.reshape(weights.shape)


def gptq_symmetric(weights: Tensor, moments: Tensor | None, bits: int, group_size: int) -> Tensor:
    """GPTQ on symmetric grids; see :func:`_gptq`."""
    return _better_gptq(weights, moments, bits, group_size, symmetric_grid)


def gptq_asymmetric(weights: Tensor, moments: Tensor | None, bits: int, group_size: int) -> Tensor:
    """GPTQ on grids with an integer zero point; see :func:`_gptq`."""
    return _better_gptq(weights, moments, bits, group_size, asymmetric_grid)


PEERS = {
    "RTN symmetric, clipping searched": Peer(rtn_symmetric, lambda bits: 0),
    "RTN asymmetric, clipping searched": Peer(rtn_asymmetric, lambda bits: bits),
    "HQQ-style": Peer(hqq, lambda bits: 16),
    "GPTQ-style symmetric, clipping searched": Peer(gptq_symmetric, lambda bits: 0, True),
    "GPTQ-style asymmetric, clipping searched": Peer(gptq_asymmetric, lambda bits: bits, True),
}


def _rtn(weights: Tensor, bits: int, group_size: int, make: Callable[[Tensor, int, float], Grid]) -> Tensor:
    groups = weights.reshape(len(weights), -1, group_size)
    return searched(groups, bits, make).nearest(groups).reshape(weights.shape)


def _better_gptq(
    weights: Tensor,
    moments: Tensor | None,
    bits: int,
    group_size: int,
    make: Callable[[Tensor, int, float], Grid],
) -> Tensor:
    """Of GPTQ with inputs in order and by their squares, whichever has less error in the output."""
    assert moments is not None
    found = [_gptq(weights, moments, bits, group_size, make, by_square) for by_square in (False, True)]
    wrong = [float((((dense - weights) @ moments) * (dense - weights)).sum()) for dense in found]
    return found[wrong.index(min(wrong))]


def _gptq(
    weights: Tensor,
    moments: Tensor,
    bits: int,
    group_size: int,
    make: Callable[[Tensor, int, float], Grid],
    by_square: bool,
) -> Tensor:
    """Frantar et al. 2022 (arXiv 2210.17323), 1 % damping.

    Inputs in order: a group's grid is searched when its turn comes, on the weights as updated so far.
    Inputs by falling square: grids are searched beforehand ("static groups").
    """
    inputs = weights.shape[1]
    diagonal = moments.diagonal().clone()
    order = torch.argsort(diagonal, descending=True, stable=True) if by_square else torch.arange(inputs)
    damped = moments.double() + 0.01 * diagonal.double().mean() * torch.eye(inputs, dtype=torch.float64)
    inverse = torch.linalg.inv(damped[order][:, order])
    factor = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True).float()
    left = weights[:, order].clone()
    result = torch.empty_like(weights)
    parts = [slice(begin, begin + group_size) for begin in range(0, inputs, group_size)]
    grids = [searched(weights[:, part], bits, make) for part in parts] if by_square else []
    for begin in range(0, inputs, group_size):
        end = begin + group_size
        if not by_square:
            grids.append(searched(left[:, begin:end], bits, make))
        errors = torch.empty(len(weights), group_size)
        for j in range(begin, end):
            column = int(order[j])
            value = grids[column // group_size].nearest(left[:, j : j + 1])[:, 0]
            result[:, column] = value
            errors[:, j - begin] = (left[:, j] - value) / factor[j, j]
            left[:, j + 1 : end] -= errors[:, j - begin, None] * factor[j, j + 1 : end]
        left[:, end:] -= errors @ factor[begin:end, end:]
    return result


def _half(values: Tensor, least: float = 2.0**-24) -> Tensor:
    """Rounded to float16; a scale never becomes zero."""
    rounded = values.to(torch.float16).float()
    return rounded.clamp(min=least) if least else rounded
