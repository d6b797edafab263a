# SPDX-License-Identifier: Apache-2.0
"""Budgets from the command line to the files: what is predicted is what is written."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest

import bcq
from bcq.budget import measure, probe
from bcq.budget.asked import options_of
from bcq.budget.sensitivity import Table
from bcq.cli import main
from bcq.commands.options import recorded
from bcq.errors import UsageError
from bcq.exporting.write import write_model
from bcq.files.base import QuantizedBase
from bcq.matrices.plan import QuantizeOptions
from bcq.report import read_report, summarize
from graphs import model_of, normal
from test_budget_choose import times

with as_file(files("bcq") / "demo_model") as _folder:
    DEMO = Path(_folder)
TEXT = DEMO / "heldout.txt"
QUICK = ["--method", "greedy", "--quiet"]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Exit code, and what stands on standard output as JSON."""
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_dry_run_of_a_budget_is_what_the_run_then_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", str(DEMO), "-o", str(tmp_path / "base"), "--target-bpw", "2.5", "--set", "wpe=4:g32"]
    code, planned = run([*words, *QUICK, "--dry-run"], capsys)
    assert code == 0
    assert not (tmp_path / "base").exists()
    assert main([*words, *QUICK]) == 0
    rows = read_report(tmp_path / "base") or []
    wanted = {entry["name"]: entry for entry in planned["matrices"]}
    for row in rows:
        entry = wanted[row.name]
        got = (row.bits, row.group_size, row.offset, row.packed_bytes)
        assert got == (entry["bits"], entry["group_size"], entry["offset"], entry["packed_bytes"])
    assert 2.4 < summarize(rows, 0, 0.0).bits_per_weight <= 2.5
    assert summarize(rows, 0, 0.0).bits_per_weight == pytest.approx(planned["budget"]["spent"])
    shares = [entry["error_share"] for entry in planned["matrices"] if entry["error_share"] is not None]
    assert sum(shares) == pytest.approx(1.0)
    section = QuantizedBase.open(tmp_path / "base").config["quantization_config"]
    assert section["overrides"] == planned["budget"]["overrides"]
    again = QuantizeOptions(method="greedy", overrides=section["overrides"])  # the plan is all in the base
    assert len(again.overrides) == len(wanted) - 1  # a tied head has none
    asked = {"target_bpw": 2.5, "method": "greedy", "overrides": ["wpe=4:g32"]}  # as Python says it
    assert [str(override) for override in options_of(DEMO, asked)[0].overrides] == section["overrides"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"target_bpw": 2.5, "bits": 3}, "bits does not go with target_bpw"),
        ({"target_bpw": 2.5, "also_bits": [2]}, "also_bits does not go with target_bpw"),
        ({"target_bpw": 2.5, "target_size": "5MB"}, "target_bpw does not go with target_size"),
        ({"sensitivity": "s.json"}, "sensitivity needs a target"),
        ({"target_size": "no"}, "expected a number above 0"),
    ],
)
def test_python_refuses_what_the_command_line_refuses(
    asked: dict[str, Any], told: str, tmp_path: Path
) -> None:
    for attempt in (bcq.quantize, bcq.export):
        with pytest.raises(UsageError, match=told):
            attempt(DEMO, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_the_table_for_people_has_a_line_for_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(DEMO), "--target-bpw", "3", "--method", "greedy", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "error share" in shown
    assert "| row |" in shown.replace("   ", " ")
    assert "bits a weight of 3.000 bits a weight; predicted loss" in shown


def test_an_exported_graph_is_as_small_as_asked_and_nearly_as_large(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """main (float[m, 256] x) => (float[m, 256] y) {
        a = MatMul (x, wa) b = Relu (a) c = MatMul (b, wc) d = Relu (c) y = MatMul (d, wa) }"""
    weights: dict[str, Any] = {"wa": normal(256, 256), "wc": 3 * normal(256, 256, seed=2)}
    write_model(model_of(text, **weights), tmp_path / "model.onnx")
    words = ["export", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "out"), "--target-size", "80KB"]
    assert main([*words, *QUICK]) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("model.onnx*"))
    assert 65_000 < size <= 80_000  # the graph takes 6 KB of the 12 that are allowed for it
    rows = read_report(tmp_path / "out") or []
    assert [row.name for row in rows] == ["wa", "wc"]
    assert all(row.bits in (2, 3, 4) for row in rows)
    code, refused = run([*words[:-1], "20KB"], capsys)
    assert (code, refused["error"]["code"]) == (2, "E204")


def test_sensitivities_are_measured_once_and_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "DECODER_TOKENS", (2, 32))
    monkeypatch.setattr(measure, "PROBED_BITS", (1, 3))
    file = tmp_path / "s.json"
    words = ["inspect", str(DEMO), "--target-bpw", "2.5", "--sensitivity", str(file), *QUICK]
    code, first = run([*words, "--sensitivity-text", str(TEXT)], capsys)
    assert code == 0
    assert first["budget"]["measure"] == "kl"
    table = Table.read(file)
    assert len(table.text) == 64
    for entry in table.matrices.values():
        (few, small), (many, large) = entry.points
        assert 0 < few < many < 1
        assert 0 < small <= large
    monkeypatch.setattr(probe, "Probe", None)  # nothing is measured again
    assert run(words, capsys) == (0, first)
    talking = [word for word in words if word != "--quiet"]
    assert main([*talking, "--sensitivity-text", str(TEXT)]) == 0
    assert "s.json is reused; remove it to measure on" in capsys.readouterr().err


def test_a_matrix_that_matters_to_the_outputs_is_more_sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "DECODER_TOKENS", (2, 32))
    found = probe.Probe(DEMO, TEXT)
    assert found.loss() == 0.0
    word, place = found.parameters["transformer.wte.weight"], found.parameters["transformer.wpe.weight"]
    lost = []
    for parameter in (word, place):
        before = parameter.clone()
        parameter.mul_(0.5)
        lost.append(found.loss())
        parameter.copy_(before)
    assert lost[0] > lost[1] > 0  # the head is tied to the words
    assert found.loss() == 0.0


CLASHES = [
    (["--bits", "3"], "E203", "--bits does not go with --target-bpw"),
    (["--offset"], "E203", "--offset does not go with"),
    (["--cost-table", "x"], "E203", "--cost-table does not go with"),
    (["--sensitivity", str(TEXT)], "E102", "no sensitivity table"),
    (["--set", "nothing=3"], "E201", "matches no matrix"),
    (["--sensitivity-text", "nowhere"], "E101", "nowhere"),
    (["--target-size", "5MB"], "E2", "not allowed with"),
]


@pytest.mark.parametrize(("words", "code", "told"), CLASHES)
def test_options_that_do_not_go_together_are_told(
    words: list[str], code: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code = main(["inspect", str(DEMO), "--target-bpw", "2.5", *QUICK, *words])
    assert exit_code in (2, 3)
    shown = capsys.readouterr().err
    assert told in shown
    assert code in shown


def test_options_of_a_budget_need_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(DEMO), "--sensitivity", "s.json"]) == 2
    assert "--sensitivity needs a target" in capsys.readouterr().err
    assert main(["inspect", str(DEMO), "--target-latency", "5ms"]) == 2
    assert "bcq bench --cost-table" in capsys.readouterr().err


def test_a_cost_table_from_elsewhere_is_used_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times(cpu="Elbrus", library="9").write(tmp_path / "costs.json")
    words = ["inspect", str(DEMO), "--target-latency", "9ms", "--cost-table", str(tmp_path / "costs.json")]
    assert main([*words, "--method", "greedy"]) == 0
    shown = capsys.readouterr()
    assert "warning: " in shown.err
    assert "cpu 'Elbrus'" in shown.err
    assert "ms of 9.000 ms" in shown.out


def test_a_text_for_a_graph_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(model_of("main (float[m, 64] x) => (float[m, 64] y) { y = MatMul (x, w) }", w=normal(64, 64)),
                tmp_path / "m.onnx")  # fmt: skip
    words = ["inspect", str(tmp_path / "m.onnx"), "--target-bpw", "3", "--sensitivity-text", str(TEXT)]
    assert main(words) == 2
    assert "model folders only" in capsys.readouterr().err


def test_the_manifest_names_the_files_of_a_budget_and_not_their_folders() -> None:
    words = [
        "quantize",
        "m",
        "--target-bpw",
        "2.5",
        "--sensitivity",
        "/home/me/s.json",
        "--cost-table=/x/c.json",
    ]
    kept = ["quantize", "m", "--target-bpw", "2.5", "--sensitivity", "s.json", "--cost-table", "c.json"]
    assert recorded(words, Path("m")) == kept
    assert recorded(["export", "--set", "a=3", "--seed", "1"], Path("m"))[1:] == [
        "--set",
        "a=3",
        "--seed",
        "1",
    ]
