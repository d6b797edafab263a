# SPDX-License-Identifier: Apache-2.0
"""An existing ``.onnx`` file, whoever made it, as a graph whose weights stay on disk until they are read."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir


def load(path: Path | str) -> ir.Model:
    """Reads a model; external data is mapped when a tensor is first read."""
    return ir.load(path)
