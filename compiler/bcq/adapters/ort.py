# SPDX-License-Identifier: Apache-2.0
"""A task as a file of ONNX Runtime, which onnxruntime and onnxruntime-genai map and swap per request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

FILE = "model.onnx_adapter"
VERSION = 1


def write_ort(values: Mapping[str, NDArray[Any]], mark: str, file: Path) -> None:
    """Writes the file.

    Args:
        values: a task's values by the names of the graph inputs.
        mark: the unused input of exports of its base: onnxruntime refuses the file on any other model.
        file: where to.
    """
    content = onnxruntime.AdapterFormat()
    content.set_adapter_version(VERSION)
    content.set_model_version(VERSION)
    arrays = {**values, mark: np.zeros(1, np.uint8)}
    content.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(arrays[name]) for name in sorted(arrays)}
    )
    content.export_adapter(str(file))


def run_options(file: Path) -> tuple[onnxruntime.RunOptions, onnxruntime.LoraAdapter]:
    """Run options under which a session computes with a task's values.

    Returns:
        The options, and the mapped file, which must live as long as they are used.
    """
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(file))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    return options, adapter
