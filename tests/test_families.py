# SPDX-License-Identifier: Apache-2.0
"""Families with details that others lack, exported and compared with PyTorch; all: ``tools/families.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import families
from bcq import parity


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


@pytest.mark.parametrize("family", ["opt", "llama-3"])
def test_a_cache_of_int8_gives_the_tokens_of_pytorch_with_keys_and_values_rounded_alike(
    family: str, tmp_path: Path
) -> None:
    outcome = families.measure(family, tmp_path, kv_cache="int8")
    assert outcome.ok, outcome
    verified = parity.verify(tmp_path / "out", per_layer=True)
    assert verified.ok
    # A code that rounds to the other side moves a value by a step; without the scales they would differ by 1.
    assert max(layer[part] for layer in verified.layers for part in ("keys", "values")) < 0.02
