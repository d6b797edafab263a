# SPDX-License-Identifier: Apache-2.0
"""One exported file gives the same tokens everywhere: onnxruntime with and without the library, and in WASM.

Elsewhere: genai in test_genai.py, onnx.reference in test_functions.py, C++ in test_sdk_examples.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq.export import export
from bcq.matrices.plan import QuantizeOptions
from tiny_models import save

PROMPT = [3, 4, 5, 6]
COUNT = 12
SCRIPT = Path(__file__).parent / "anywhere" / "generate.js"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose matrices, embeddings included, are packed."""
    root = tmp_path_factory.mktemp("anywhere")
    save("gpt2", root / "model", n_positions=32)
    options = QuantizeOptions(bits=3, group_size=32, method="greedy")
    export(root / "model", root / "out", options)
    return root / "out"


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[int]:
    """What onnxruntime generates with the library."""
    tokens = bcq.load(folder).generate(PROMPT, COUNT)
    assert len(tokens) == COUNT
    return tokens


def in_wasm(folder: Path) -> dict[str, Any]:
    """What the script says; skips where Node or the package is missing."""
    node, modules = shutil.which("node"), os.environ.get("BCQ_NODE_MODULES", "")
    if node is None:
        pytest.skip("node is not installed")
    if not (Path(modules) / "onnxruntime-web").is_dir():
        pytest.skip("BCQ_NODE_MODULES names no folder with onnxruntime-web; `make anywhere` does")
    command = [node, str(SCRIPT), str(folder), str(COUNT), *map(str, PROMPT)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "NODE_PATH": modules}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_onnxruntime_without_the_library_generates_the_same_tokens(folder: Path, expected: list[int]) -> None:
    assert bcq.load(folder, with_library=False).generate(PROMPT, COUNT) == expected


def test_onnxruntime_web_generates_the_same_tokens_in_wasm(folder: Path, expected: list[int]) -> None:
    assert in_wasm(folder)["ids"] == expected
