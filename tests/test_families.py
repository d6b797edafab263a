# SPDX-License-Identifier: Apache-2.0
"""Families with details that others lack, exported and compared with PyTorch; all: ``tools/families.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="PyTorch is the reference")
pytest.importorskip("transformers", reason="transformers makes the models")


@pytest.fixture(scope="module")
def tool() -> Any:
    """``tools/families.py`` as a module."""
    path = Path(__file__).resolve().parents[1] / "tools" / "families.py"
    spec = importlib.util.spec_from_file_location("families", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "family",
    [
        "gemma2",  # a cap on scores and on logits, windows in every other layer
        "qwen3",  # norms on queries and keys, heads of a size of their own, a tied head
        "llama-3",  # grouped heads, scaled rotations
        "phi4-mini",  # joined projections, partly rotated heads
    ],
)
def test_a_family_gives_pytorchs_tokens_over_64_steps_in_one_buffer(
    tool: Any, family: str, tmp_path: Path
) -> None:
    outcome = tool.measure(family, tmp_path)
    assert outcome.fused
    assert outcome.ok, outcome
