# SPDX-License-Identifier: Apache-2.0
"""The quantizers that binary codes are compared with are what their names say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the yardsticks are written in torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

NAMES = {name.split(",")[0]: peer for name, peer in importlib.import_module("quality_peers").PEERS.items()}


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gptq_on_inputs_that_do_not_depend_on_each_other_is_rounding(kind: str, bits: int) -> None:
    weights = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    rounded = NAMES[f"RTN {kind}"].solve(weights, None, bits, 32)
    assert torch.equal(NAMES[f"GPTQ-style {kind}"].solve(weights, torch.eye(64), bits, 32), rounded)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_gptq_beats_rounding_where_inputs_depend_on_each_other(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, data = torch.randn(16, 64, generator=generator), torch.randn(400, 8, generator=generator)
    inputs = data @ torch.randn(8, 64, generator=generator) + 0.2 * torch.randn(400, 64, generator=generator)
    wrong = [
        float(
            (
                inputs @ (NAMES[f"{name} {kind}"].solve(weights, inputs.T @ inputs / 400, 2, 32) - weights).T
            ).norm()
        )
        for name in ("GPTQ-style", "RTN")
    ]
    assert wrong[0] < wrong[1] / 2


@pytest.mark.parametrize("name", list(NAMES))
def test_a_group_has_as_many_levels_as_its_bits_say_and_pays_for_its_scales(name: str) -> None:
    weights = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    dense = NAMES[name].solve(weights, torch.eye(96), 2, 48)
    assert max(len(group.unique()) for group in dense.reshape(6, 48)) <= 4
    zero = 16 if name == "HQQ-style" else 2 if "asymmetric" in name else 0
    assert NAMES[name].cost(2, 48) == 2 + (16 + zero) / 48
