# SPDX-License-Identifier: Apache-2.0
"""Bad checkpoints are refused by name, no code of theirs runs, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="quantizing needs the packages for compiling")

from bcq.errors import BcqError
from bcq.export import export
from bcq.matrices.plan import QuantizeOptions
from bcq.quantize import quantize
from hostile.checkpoints import CANARY, CHECKPOINTS
from tiny_models import save

QUICK = QuantizeOptions(bits=1, method="greedy")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save("gpt2", tmp_path_factory.mktemp("good") / "model")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_by_name_and_nothing_of_it_runs(
    good: Path, tmp_path: Path, name: str
) -> None:
    bad = CHECKPOINTS[name]
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    bad.attack(folder)
    for write in (quantize, export) if list(CHECKPOINTS).index(name) % 8 == 0 else (quantize,):
        with pytest.raises(BcqError) as caught:
            write(folder, tmp_path / "out", QUICK)
        assert caught.value.code == bad.code, caught.value
        assert bad.names in caught.value.message
        assert "\n" not in caught.value.message
    assert not (tmp_path / CANARY).exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"model", "model-1.safetensors"}


def test_the_good_checkpoint_that_they_start_from_is_quantized(good: Path, tmp_path: Path) -> None:
    assert len(quantize(good, tmp_path / "out", QUICK).names()) == 10
