# SPDX-License-Identifier: Apache-2.0
"""Refined factors: nearer outputs on other text, codes as they were, the same bytes however they are made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="calibrating needs the packages for compiling")

import torch
from torch import nn

import bcq
from bcq import packing
from bcq.calibration import CalibrationOptions
from bcq.calibration.refine import Lesson, refine
from bcq.cli import main
from bcq.errors import UsageError
from bcq.files.base import QuantizedBase
from bcq.matrices.plan import QuantizeOptions
from bcq.quantize import REPORT, quantize
from bcq.solver import solve
from test_calibration import WORDS_OF_TEXT, StopsAt, contents, model_of, outputs
from tiny_tokenizer import text

TWO_BITS = QuantizeOptions(bits=2, group_size=32, offset=True)
PASSES = 2


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "calibration.txt"
    file.write_text(text(WORDS_OF_TEXT))
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_of("gpt2", tmp_path_factory.mktemp("gpt2"))


def made(model: Path, words: Path, output: Path, passes: int = PASSES, workers: int = 1) -> QuantizedBase:
    chosen = CalibrationOptions(words, workers=workers, refine=passes)
    return quantize(model, output, TWO_BITS, calibration=chosen)


@pytest.fixture(scope="module")
def refined(model: Path, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("refined") / "base"
    made(model, words, output)
    return output


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_refined_factors_bring_the_outputs_nearer_on_other_text(
    kind: str, words: Path, tmp_path: Path
) -> None:
    model = model_of(kind, tmp_path / "model")
    expected, errors = outputs(model), []
    for passes in (0, PASSES):
        made(model, words, tmp_path / f"base{passes}", passes)
        errors.append(float((outputs(model, tmp_path / f"base{passes}") - expected).square().mean()))
    assert errors[1] < errors[0]


def test_the_first_block_keeps_its_codes_and_the_report_says_how(
    model: Path, words: Path, refined: Path, tmp_path: Path
) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    plain, better = (
        made(model, words, tmp_path / "base", 0).packed(name),
        QuantizedBase.open(refined).packed(name),
    )
    assert np.array_equal(plain.codes, better.codes)
    assert not np.array_equal(plain.alpha_1, better.alpha_1)
    assert not np.array_equal(plain.offset, better.offset)
    rows = {row["name"]: row for row in json.loads((refined / REPORT).read_text())["matrices"]}
    assert rows[name]["method"] == "calibrated"
    assert 0 < rows[name]["calibrated_error"] < 1
    section = json.loads((refined / "config.json").read_text())["quantization_config"]
    assert section["calibration"]["refine"] == PASSES


def test_any_number_of_workers_refines_to_the_same_bytes(
    model: Path, words: Path, refined: Path, tmp_path: Path
) -> None:
    made(model, words, tmp_path / "base", workers=3)
    assert contents(tmp_path / "base") == contents(refined)


@pytest.mark.parametrize("left", [4, 8])  # inside the first block, and inside the second one
def test_a_stopped_run_refines_to_the_same_bytes(
    left: int, model: Path, words: Path, refined: Path, tmp_path: Path
) -> None:
    chosen = CalibrationOptions(words, workers=1, refine=PASSES)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "base", TWO_BITS, StopsAt(left), calibration=chosen)
    quantize(model, tmp_path / "base", TWO_BITS, calibration=chosen, resume=True)
    assert contents(tmp_path / "base") == contents(refined)


def test_factors_that_were_spoilt_are_found_again() -> None:
    seeded = np.random.default_rng(0)
    solved = solve(seeded.standard_normal((24, 70)).astype(np.float32), 2, 32, offset=True)
    layer, inputs = nn.Linear(70, 24), torch.from_numpy(seeded.standard_normal((400, 70)).astype(np.float32))
    layer.requires_grad_(False)
    target = nn.functional.linear(inputs, torch.from_numpy(solved.dequantize()), layer.bias)
    spoilt = solved.alpha * seeded.uniform(0.8, 1.2, solved.alpha.shape).astype(np.float16)
    packed = packing.pack(type(solved)(solved.words, spoilt, solved.offset, solved.inputs, solved.group_size))
    halves = (slice(0, 200), slice(200, 400))
    lesson = Lesson(2, lambda batch: layer(inputs[halves[batch]]), lambda batch: target[halves[batch]])
    found = refine({"layer": (layer, packed)}, lesson, passes=60)
    assert found.after < found.before / 20
    assert np.array_equal(found.weights["layer"].codes, packed.codes)
    assert torch.equal(layer(inputs), nn.functional.linear(inputs, layer.weight, layer.bias))  # as it was


def test_factors_stay_where_training_has_nothing_to_gain() -> None:
    solved = packing.pack(solve(np.ones((16, 32), np.float32), 1, 32))
    layer = nn.Linear(32, 16, bias=False).requires_grad_(False)
    inputs = torch.ones(4, 32)
    exact = torch.full((4, 16), 32.0)
    found = refine({"layer": (layer, solved)}, Lesson(1, lambda _: layer(inputs), lambda _: exact), passes=3)
    assert found.weights["layer"] is solved
    assert found.before == found.after == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--refine", "2"), "needs --calibrate"), (("--refine", "-1", "--calibrate", "t"), "at least 0")],
)
def test_refinement_that_makes_no_sense_is_refused(
    more: tuple[str, ...], said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(model), "-o", str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_refining_without_a_text_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without calibrate"):
        bcq.quantize(model, tmp_path / "out", bits=2, refine=2)
