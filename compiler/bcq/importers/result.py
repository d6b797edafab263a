# SPDX-License-Identifier: Apache-2.0
"""How well one matrix was taken over: exactly, or by how much it was rounded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImportedMatrix:
    """What became of one quantized matrix of the source.

    Attributes:
        name: its parameter or initializer name.
        bits: planes of the result.
        exact: every weight equals what the source means.
        worst: largest error of a weight, in quantization steps of its group.
        relative_error: sum of squared errors over the sum of squared weights.
    """

    name: str
    bits: int
    exact: bool = True
    worst: float = 0.0
    relative_error: float = 0.0

    def __str__(self) -> str:
        if self.exact:
            return f"{self.bits} bits, exact"
        error = f"by up to {self.worst:.2g} steps, relative error {self.relative_error:.2g}"
        return f"{self.bits} bits, rounded {error}"
