# SPDX-License-Identifier: Apache-2.0
"""Writes a model with its weights beside it, aligned so that a runtime can map them."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir


def write_model(model: ir.Model, path: Path, data_name: str | None = None) -> None:
    """Writes ``path`` and its data file (``<name>.data`` unless ``data_name`` is given)."""
    raise NotImplementedError
