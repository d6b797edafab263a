# SPDX-License-Identifier: Apache-2.0
"""Parity: the exported file in onnxruntime against PyTorch with the dequantized weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bcq.progress import SILENT, Progress


@dataclass(frozen=True)
class ParityResult:
    """How far the exported model is from PyTorch with the same dequantized weights.

    Attributes:
        ok: everything within tolerance.
        max_abs: largest absolute difference of any output element.
        relative: RMS of the difference over RMS of the reference.
        cosine: smallest cosine between output rows.
        tolerance: what `relative` may reach.
        tokens_equal: greedy tokens identical (decoders), else None.
        original: the same figures against the original weights, informative only.
        layers: figures per layer when asked for.
    """

    ok: bool
    max_abs: float
    relative: float
    cosine: float
    tolerance: float
    tokens_equal: bool | None = None
    original: dict[str, float] | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        raise NotImplementedError


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    prompt: str | None = None,
    tokens: Sequence[int] | None = None,
    steps: int = 16,
    per_layer: bool = False,
    progress: Progress = SILENT,
) -> ParityResult:
    """Compares an exported folder with its reference."""
    raise NotImplementedError
