# SPDX-License-Identifier: Apache-2.0
"""Calibrated bases: better outputs, the same bytes however they are made, and clear ends of every kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="calibrating needs the packages for compiling")

import torch
import transformers

import tiny_models
from bcq import packing
from bcq.calibration import CalibrationOptions
from bcq.cli import main
from bcq.files.base import QuantizedBase
from bcq.matrices.plan import QuantizeOptions
from bcq.quantize import REPORT, quantize
from tiny_tokenizer import save_tokenizer, text

TWO_BITS = QuantizeOptions(bits=2, group_size=32)
WORDS_OF_TEXT = 1000


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "calibration.txt"
    file.write_text(text(WORDS_OF_TEXT))
    return file


def model_of(kind: str, folder: Path) -> Path:
    return save_tokenizer(tiny_models.save(kind, folder, num_hidden_layers=2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_of("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def calibrated(model: Path, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("calibrated") / "base"
    quantize(model, output, TWO_BITS, calibration=CalibrationOptions(words, workers=1))
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def methods(base: Path) -> dict[str, str]:
    return {row["name"]: row.get("method", "") for row in json.loads((base / REPORT).read_text())["matrices"]}


def outputs(model: Path, base: Path | None = None) -> torch.Tensor:
    """Last hidden states on text that was not calibrated on, with the matrices of a base."""
    loaded = transformers.AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    if base is not None:
        opened = QuantizedBase.open(base)
        for name, parameter in loaded.named_parameters():
            matrix = opened.find(name) or opened.find(f"{loaded.base_model_prefix}.{name}")
            if matrix is not None:
                dense = packing.unpack(opened.packed(matrix.stored)).dequantize()
                parameter.data.copy_(torch.from_numpy(dense.T if matrix.transposed else dense))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text(600, seed=1))["input_ids"]
    with torch.inference_mode():
        states: torch.Tensor = loaded(input_ids=torch.tensor(ids[:600]).reshape(-1, 30)).last_hidden_state
    return states


@pytest.mark.parametrize("kind", ["llama", "opt", "bert"])
def test_calibrated_matrices_change_the_outputs_less(kind: str, words: Path, tmp_path: Path) -> None:
    model, expected = model_of(kind, tmp_path / "model"), None
    quantize(model, tmp_path / "plain", TWO_BITS)
    quantize(model, tmp_path / "calibrated", TWO_BITS, calibration=CalibrationOptions(words, workers=1))
    expected = outputs(model)
    plain, better = (
        float((outputs(model, tmp_path / name) - expected).square().mean())
        for name in ("plain", "calibrated")
    )
    assert better < 0.9 * plain
    packed = [row for row in methods(tmp_path / "calibrated").items() if row[1]]
    assert {name for name, method in packed if method != "calibrated"} <= {
        name
        for name, _ in packed
        if "embed" in name or "wte" in name or "wpe" in name or name == "lm_head.weight"
    }
    assert sum(method == "calibrated" for _, method in packed) >= 8


def test_the_report_tells_method_and_calibrated_error(calibrated: Path) -> None:
    rows = {row["name"]: row for row in json.loads((calibrated / REPORT).read_text())["matrices"]}
    attention, table = rows["transformer.h.0.attn.c_attn.weight"], rows["transformer.wte.weight"]
    assert attention["method"] == "calibrated"
    assert 0 < attention["calibrated_error"] < attention["relative_error"] < 1
    positions = rows["transformer.wpe.weight"]
    assert table["method"] == "calibrated"  # it is also the head
    assert (positions["method"], positions["calibrated_error"]) == ("multistart", None)
    section = json.loads((calibrated / "config.json").read_text())["quantization_config"]
    assert section["calibration"] == {"text": "calibration.txt", "windows": None, "tokens": None}


def test_without_calibration_the_report_says_nothing_of_it(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "base", QuantizeOptions(bits=1, method="greedy"))
    told = (tmp_path / "base" / REPORT).read_text() + (tmp_path / "base" / "config.json").read_text()
    assert "calibrat" not in told
    assert '"method": "greedy"' in told  # of the options


def logits(model: Path, base: Path | None = None) -> torch.Tensor:
    """Of text that was not calibrated on, with the table of a base that is also the head, all else dense."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if base is not None:
        table = packing.unpack(QuantizedBase.open(base).packed("transformer.wte.weight"))
        loaded.get_input_embeddings().weight.data.copy_(torch.from_numpy(table.dequantize()))
    ids = transformers.AutoTokenizer.from_pretrained(model)(text(600, seed=1))["input_ids"]
    with torch.inference_mode():
        found: torch.Tensor = loaded(input_ids=torch.tensor(ids[:600]).reshape(-1, 30)).logits
    return found


def test_a_table_that_is_also_the_head_is_solved_for_what_the_head_reads(
    model: Path, calibrated: Path, tmp_path: Path
) -> None:
    quantize(model, tmp_path / "plain", TWO_BITS)
    expected = logits(model)
    plain, better = (
        float((logits(model, base) - expected).square().mean()) for base in (tmp_path / "plain", calibrated)
    )
    assert better < plain


def test_any_number_of_workers_makes_the_same_bytes(
    model: Path, words: Path, calibrated: Path, tmp_path: Path
) -> None:
    quantize(model, tmp_path / "base", TWO_BITS, calibration=CalibrationOptions(words, workers=3))
    assert contents(tmp_path / "base") == contents(calibrated)


def test_the_inputs_come_from_packed_blocks(
    model: Path, words: Path, calibrated: Path, tmp_path: Path
) -> None:
    coarse = QuantizeOptions(bits=2, group_size=32, overrides=("h.0.*=keep",))
    quantize(model, tmp_path / "base", coarse, calibration=CalibrationOptions(words, workers=1))
    second = "transformer.h.1.mlp.c_fc.weight"
    one, other = (QuantizedBase.open(base).packed(second) for base in (calibrated, tmp_path / "base"))
    assert one.bits == other.bits
    assert not np.array_equal(one.codes, other.codes)


class StopsAt:
    """Progress that raises at the n-th matrix."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.told: list[str] = []

    def start(self, what: str, total: int) -> None: ...

    def step(self, name: str, detail: str = "") -> None:
        self.told.append(detail)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def done(self) -> None: ...


def test_a_stopped_run_solves_nothing_twice_and_makes_the_same_bytes(
    model: Path, words: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcq.calibration.pool import LocalWorkers

    chosen = CalibrationOptions(words, workers=1)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "base", TWO_BITS, StopsAt(8), calibration=chosen)
    assert [path.name for path in tmp_path.iterdir()] == [".base.resume"]
    asked: list[str] = []
    solve = LocalWorkers.solve

    def noted(self: LocalWorkers, tasks: list[Any]) -> Any:
        asked.extend(task.name for task in tasks)
        return solve(self, tasks)

    monkeypatch.setattr(LocalWorkers, "solve", noted)
    quantize(model, tmp_path / "base", TWO_BITS, calibration=chosen, resume=True)
    assert len(asked) == 2  # of ten: a table that is the head, positions and six matrices were there
    assert contents(tmp_path / "base") == contents(calibrated)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_another_text_uses_nothing_of_a_stopped_run(model: Path, words: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "base", TWO_BITS, StopsAt(8), calibration=CalibrationOptions(words))
    (tmp_path / "other.txt").write_text(text(WORDS_OF_TEXT, seed=7))
    other = CalibrationOptions(tmp_path / "other.txt")
    resumed = quantize(model, tmp_path / "base", TWO_BITS, calibration=other, resume=True)
    assert resumed.base_hash == quantize(model, tmp_path / "new", TWO_BITS, calibration=other).base_hash


def command(model: Path, words: Path, output: Path, *more: str) -> list[str]:
    return [
        "quantize", str(model), "-o", str(output), "--bits", "2", "--group-size", "32",
        "--calibrate", str(words), *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


WAITS = """
import sys, time
from bcq import cli, progress

class Waiting(progress.PlainLines):
    def _print(self, line):
        super()._print(line)
        if sys.argv[1] in line:
            time.sleep(60)  # until it is stopped

progress.PlainLines = Waiting
sys.exit(cli.main(sys.argv[2:]))
"""


def stopped(words_of_run: list[str], line: str, how: signal.Signals) -> tuple[int, str]:
    """Stops a command and all that it started once it has printed a line; status and last words."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITS, line, *words_of_run],
        env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as run:  # fmt: skip
        assert run.stderr is not None
        for said in run.stderr:
            if line in said:
                os.kill(run.pid, how) if how == signal.SIGKILL else os.killpg(run.pid, how)
                break
        rest = run.stderr.read()  # ends when no process of the run is left that could write
    return run.returncode, rest


def test_runs_that_are_stopped_and_killed_go_on_and_make_the_same_bytes(
    model: Path, words: Path, calibrated: Path, tmp_path: Path
) -> None:
    run = command(model, words, tmp_path / "base", "--workers", "2")
    code, rest = stopped(run, "quantize 4/10", signal.SIGINT)
    assert (code, rest.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == [".base.resume"]
    assert stopped([*run, "--resume"], "quantize 7/10", signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (tmp_path / "base").exists()
    assert main([*run, "--quiet", "--resume", "--workers", "1"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    made, expected = contents(tmp_path / "base"), contents(calibrated)
    assert b"--workers" not in made.pop("MANIFEST.json")
    assert expected.pop("MANIFEST.json")
    assert made == expected


def test_workers_end_with_the_run_that_started_them() -> None:
    script = (
        "import time; from bcq.calibration.pool import start_worker\n"
        "print(start_worker().pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        run.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        if "Z" in Path(f"/proc/{worker}/stat").read_text().split(")")[1][:3]:
            break  # it has ended, and nobody has asked how
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{worker}").exists()
