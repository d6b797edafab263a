# SPDX-License-Identifier: Apache-2.0
"""onnx-bcq: a tuned transformer in, a small and fast ONNX model out.

The names in ``__all__`` are the public interface. They are imported when first used, so that ``import bcq``
is quick and a program that only runs models never imports torch.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcq.adapters.adapter import Adapter
    from bcq.adapters.tasks import feeds
    from bcq.api import export, quantize, tune
    from bcq.bcq import BcqWeight
    from bcq.errors import BcqError, InputError, ParityFailure, ResourceError, UnsupportedError, UsageError
    from bcq.files.base import QuantizedBase
    from bcq.generation.model import Model, load
    from bcq.importers.run import import_model
    from bcq.matrices.plan import QuantizeOptions
    from bcq.packing import PackedWeight, pack, unpack
    from bcq.parity import ParityResult, verify
    from bcq.runtime import session

_HOME = {
    "Adapter": "bcq.adapters.adapter",
    "BcqError": "bcq.errors",
    "BcqWeight": "bcq.bcq",
    "InputError": "bcq.errors",
    "Model": "bcq.generation.model",
    "PackedWeight": "bcq.packing",
    "ParityFailure": "bcq.errors",
    "ParityResult": "bcq.parity",
    "QuantizeOptions": "bcq.matrices.plan",
    "QuantizedBase": "bcq.files.base",
    "ResourceError": "bcq.errors",
    "UnsupportedError": "bcq.errors",
    "UsageError": "bcq.errors",
    "export": "bcq.api",
    "feeds": "bcq.adapters.tasks",
    "import_model": "bcq.importers.run",
    "load": "bcq.generation.model",
    "pack": "bcq.packing",
    "quantize": "bcq.api",
    "session": "bcq.runtime",
    "tune": "bcq.api",
    "unpack": "bcq.packing",
    "verify": "bcq.parity",
}

__all__ = [
    "Adapter",
    "BcqError",
    "BcqWeight",
    "InputError",
    "Model",
    "PackedWeight",
    "ParityFailure",
    "ParityResult",
    "QuantizeOptions",
    "QuantizedBase",
    "ResourceError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "export",
    "feeds",
    "import_model",
    "load",
    "pack",
    "quantize",
    "session",
    "tune",
    "unpack",
    "verify",
]

# Official builds of onnxruntime 1.29 and newer send facts about sessions and models, from Linux too, and read
# this when they are imported. A program that imports bcq sends none unless its user has set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    __version__ = version("onnx-bcq")
except PackageNotFoundError:  # a checkout on PYTHONPATH, not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bcq' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    if not isinstance(value, FunctionType):
        return value
    from bcq.spoken import in_python

    return in_python(value)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps ``import bcq.export`` (the module) from hiding ``bcq.export`` (the function of the same name)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
