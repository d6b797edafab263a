# SPDX-License-Identifier: Apache-2.0
"""A tuned model in, a folder with a packed ONNX model out: the whole story in one function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.progress import SILENT, Progress

if TYPE_CHECKING:
    from bcq.base import QuantizedBase
    from bcq.passes.weights import PackReport
    from bcq.plan import QuantizeOptions


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        folder: the output folder.
        kind: ``"decoder"``, ``"encoder"`` or ``"graph"`` (an ``.onnx`` file came in).
        report: every matrix, packed or not, with the reason.
        seconds: wall time.
        model_bytes: bytes of ``model.onnx`` and its data file.
    """

    folder: Path
    kind: str
    report: PackReport
    seconds: float
    model_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        raise NotImplementedError


def export(
    source: str | Path | QuantizedBase,
    output: Path,
    options: QuantizeOptions | None = None,
    allow_partial: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Exports a quantized base, a model folder or an ``.onnx`` file to `output`."""
    raise NotImplementedError
