# SPDX-License-Identifier: Apache-2.0
"""An export is compared with the model folder it was made from, and with no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="PyTorch is the reference")

from bcq import cli
from bcq.export import export
from bcq.files.exported import ExportedWeights
from bcq.matrices.plan import QuantizeOptions
from bcq.parity import verify
from bcq.parity.source import MOST_ERROR, _unequal, _unlike, difference
from bcq.solver import solve
from graphs import normal
from tiny_models import save

LAYER = "transformer.h.1.mlp.c_fc.weight"
BIAS = "transformer.h.0.attn.c_attn.bias"
Change = Callable[[NDArray[Any]], NDArray[Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A seeded GPT-2 and its export."""
    folder = tmp_path_factory.mktemp("made")
    source = save("gpt2", folder / "model")
    export(source, folder / "out", QuantizeOptions(bits=2, group_size=32, method="greedy"))
    return source, folder / "out"


def reason_against(out: Path, source: Path) -> str:
    return difference(out, ExportedWeights.open(out), source) or ""


def copy_with(source: Path, target: Path, name: str, change: Change) -> Path:
    """A copy of a model folder in which one tensor is changed."""
    shutil.copytree(source, target)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(target / "model.safetensors")
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_an_export_agrees_with_the_folder_it_was_made_from(made: tuple[Path, Path]) -> None:
    source, out = made
    assert reason_against(out, source) == ""
    result = verify(out, source, steps=2)
    assert (result.ok, result.reason) == (True, None)
    assert result.original is not None


def test_another_family_is_named_and_is_exit_code_5(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save("llama", tmp_path / "other")
    assert cli.main(["verify", str(made[1]), "--against", str(other), "--steps", "2", "--json"]) == 5
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert "the export is a GPT2LMHeadModel, the original a LlamaForCausalLM" in answer["reason"]
    assert cli.main(["verify", str(made[1]), "--against", str(other), "--steps", "2"]) == 5
    assert "parity        FAILED: not made from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_embd": 32}, "n_embd of config.json is 64, the original's 32"),
        ({"n_layer": 1}, "n_layer of config.json is 2, the original's 1"),
        ({"n_head": 8}, "n_head of config.json is 4, the original's 8"),
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon"),
    ],
)
def test_other_sizes_and_settings_are_named(
    made: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    assert reason in reason_against(made[1], save("gpt2", tmp_path / "other", **changes))


def test_other_special_tokens_and_notes_make_no_other_model(made: tuple[Path, Path], tmp_path: Path) -> None:
    same = save("gpt2", tmp_path / "same", eos_token_id=5, use_cache=False)
    assert reason_against(made[1], same) == ""


def test_one_other_value_of_a_dense_tensor_is_found(made: tuple[Path, Path], tmp_path: Path) -> None:
    def next_up(values: NDArray[Any]) -> NDArray[Any]:
        values[7] = np.nextafter(values[7], np.float32(np.inf))
        return values

    other = copy_with(made[0], tmp_path / "other", BIAS, next_up)
    assert f"tensor '{BIAS}' differs from the original's in 1 of 192 values" in reason_against(made[1], other)


@pytest.mark.parametrize(
    "change",
    [lambda w: normal(*w.shape, seed=5) * w.std(), lambda w: -w, np.zeros_like, lambda w: w[:, ::-1]],
)
def test_a_matrix_that_is_not_like_its_packed_form_is_found(
    made: tuple[Path, Path], tmp_path: Path, change: Change
) -> None:
    other = copy_with(made[0], tmp_path / "other", LAYER, change)
    assert f"matrix '{LAYER}' has a relative squared error of" in reason_against(made[1], other)
    assert not verify(made[1], other, steps=1).ok


@pytest.mark.parametrize("group_size", [96, 32])
@pytest.mark.parametrize("transposed", [False, True])
def test_even_one_greedy_bit_of_heavy_tails_is_like_its_original(group_size: int, transposed: bool) -> None:
    laplace = np.random.default_rng(0).laplace(size=(64, 96)).astype(np.float32)  # error 0.5: see MOST_ERROR
    packed = solve(laplace, 1, group_size, "greedy").dequantize()
    original = np.ascontiguousarray(laplace.T) if transposed else laplace
    assert _unlike("w", packed, original) is None
    assert MOST_ERROR < 1
    assert "error of 1.00" in (_unlike("w", np.zeros_like(packed), original) or "")


def test_dense_tensors_may_differ_by_the_rounding_of_their_own_type_alone() -> None:
    values = normal(1000) * np.float32(1e-3)
    assert _unequal("w", values.astype(np.float16), values) is None
    assert _unequal("w", values, values) is None
    assert _unequal("w", (values * 1.01).astype(np.float16), values) is not None
    assert _unequal("w", np.nextafter(values, np.float32(1)), values) is not None
