# SPDX-License-Identifier: Apache-2.0
"""The graph files of an export that serves several precisions: one for each, beside one data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bcq.errors import InputError, UsageError
from bcq.files.checkpoint import read_json

MODEL_FILE = "model.onnx"  # of the highest precision
ENCODER_FILE = "model-encoder.onnx"  # of an encoder-decoder: what reads the source
PATTERN = "model*.onnx*"  # every file of graphs and weights in a folder


def graph_name(bits: int, name: str = MODEL_FILE) -> str:
    """The graph of a further precision, by the name of the highest one's."""
    return f"{name.removesuffix('.onnx')}-{bits}bit.onnx"


def precisions(folder: Path) -> list[int]:
    """Bits that an export or a base serves, the default first; empty when its configuration does not say."""
    try:
        section: Any = read_json(folder / "config.json").get("quantization_config")
        return [section["bits"], *sorted(section.get("also_bits", ()), reverse=True)]
    except (InputError, KeyError, TypeError, AttributeError):
        return []


def further(folder: Path) -> list[int]:
    """Bits besides the default for which an export has a graph."""
    return [bits for bits in precisions(folder)[1:] if (folder / graph_name(bits)).is_file()]


def graph_file(folder: Path, bits: int | None, name: str = MODEL_FILE) -> Path:
    """The graph of a precision; None is the default one.

    Args:
        folder: an export.
        bits: the precision.
        name: the graph of the highest one, where an export has several.

    Raises:
        UsageError: E202 when the folder does not serve it.
    """
    known = precisions(folder)
    if bits is None or [bits] == known[:1]:
        return folder / name
    if bits in further(folder):
        return folder / graph_name(bits, name)
    served = ", ".join(map(str, [*known[:1], *further(folder)])) or "one precision"
    raise UsageError(
        "E202",
        f"bits: got {bits}, {folder} serves {served}.",
        "Make a model of several precisions with: bcq quantize --bits 4 --also-bits 2,3.",
    )
