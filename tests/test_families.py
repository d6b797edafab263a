# SPDX-License-Identifier: Apache-2.0
"""Families with details that others lack, exported and compared with PyTorch; all: ``tools/families.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import families


@pytest.mark.parametrize(
    "family",
    [
        "gemma2",  # a cap on scores and on logits, windows in every other layer
        "qwen3",  # norms on queries and keys, heads of a size of their own, a tied head
        "llama-3",  # grouped heads, scaled rotations
        "phi4-mini",  # joined projections, partly rotated heads
    ],
)
def test_a_family_gives_pytorchs_tokens_over_64_steps_in_one_buffer(family: str, tmp_path: Path) -> None:
    outcome = families.measure(family, tmp_path)
    assert outcome.fused
    assert outcome.ok, outcome
