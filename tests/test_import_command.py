# SPDX-License-Identifier: Apache-2.0
"""``bcq import``: what it prints, how it leaves, and that its choices are those of the importers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nbits_graphs as graphs
from bcq import cli
from bcq.commands import import_
from bcq.importers import factors
from bcq.importers.run import SOURCES, TARGETS
from foreign import Grid


def saved(tmp_path: Path, zeros: str = "absent") -> Path:
    grid = Grid(64, 256, symmetric=zeros == "absent", dtype=np.float32)
    grid.scales = grid.scales.astype(np.float16).astype(np.float32)
    return graphs.save(graphs.model(grid, zeros), tmp_path / "in/model.onnx")


def test_the_choices_are_those_of_the_importers() -> None:
    verb = cli.parser()._subparsers
    assert verb is not None
    parser = verb._group_actions[0].choices["import"]  # type: ignore[index]
    choices = {action.dest: action.choices for action in parser._actions}
    assert tuple(choices["format"]) == SOURCES
    assert tuple(choices["to"]) == TARGETS
    assert tuple(choices["inexact"]) == factors.INEXACT


def test_an_exact_import_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", str(saved(tmp_path)), "-o", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("imported    1 matrices from matmulnbits, every weight exact\n")
    assert "packed      1 of 1 matrices" in text


def test_a_refusal_is_one_line_with_both_ways_out_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import", str(saved(tmp_path, "packed")), "-o", str(tmp_path / "out")]) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("error[E403]: 'h.0.fc.weight': float16 factors cannot hold ")
    assert "--inexact plane" in line
    assert "--inexact round" in line
    assert not (tmp_path / "out").exists()


def test_rounding_is_reported_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import", str(saved(tmp_path, "packed")), "-o", str(tmp_path / "out"), "--inexact", "round"]
    assert cli.main(words) == 0
    assert "rounded: a weight by up to 0.00" in capsys.readouterr().out
    assert cli.main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["exact"] is False
    assert 0 < data["imported"][0]["relative_error"] < 1e-6
    report = json.loads((tmp_path / "out/bcq_report.json").read_text())
    assert report["options"] == {"imported_from": "matmulnbits", "inexact": "round"}
    assert report["matrices"][0]["relative_error"] == data["imported"][0]["relative_error"]


def test_the_way_back_is_the_option_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", str(saved(tmp_path)), "-o", str(tmp_path / "out")]) == 0
    words = ["import", str(tmp_path / "out"), "-o", str(tmp_path / "back"), "--to", "matmulnbits", "--json"]
    capsys.readouterr()
    assert cli.main(words) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["format"], data["exact"]) == ("bcq", True)
    manifest = json.loads((tmp_path / "back/MANIFEST.json").read_text())
    assert manifest["command"] == ["bcq", "import", "out", "--to", "matmulnbits"]


def test_the_examples_name_every_direction() -> None:
    assert all(word in import_.EXAMPLES for word in ("base", ".onnx", "--to matmulnbits", "--inexact"))
