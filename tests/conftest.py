# SPDX-License-Identifier: Apache-2.0
"""What several modules of tests share.

It imports bcq before a test imports onnxruntime, which would otherwise collect facts and send them, and lets
an interrupt reach the commands that tests start: a shell that runs tests in the background ignores it.
"""

from __future__ import annotations

import signal
from importlib.resources import as_file, files
from pathlib import Path

import pytest

import bcq
from bcq.kernels.core import Core
from native_builds import emulated_library

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what is ignored here would be ignored by every child
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """Kernels of instruction sets that this CPU does not have, by SIMDe."""
    library = emulated_library(tmp_path_factory.mktemp("emulated"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BCQ_LIBRARY", str(library))
        return Core.load()


@pytest.fixture(scope="session")
def demo_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the demo model at 2 bits; tests only read it."""
    pytest.importorskip("torch", reason="exporting needs the packages for compiling")
    out = tmp_path_factory.mktemp("export") / "demo"
    with as_file(files("bcq") / "demo_model") as source:
        bcq.export(source, out, bits=2, group_size=32, method="uniform")
    return out
