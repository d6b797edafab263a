# SPDX-License-Identifier: Apache-2.0
"""``bcq bench``: plans, dry runs, files, errors, and what a signal leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bcq.bench import measure, plan
from bcq.bench.bandwidth import ReadBandwidth
from bcq.bench.cost_table import CostTable
from bcq.bench.interrupt import TERMINATED
from bcq.bench.scratch import scratch_folder
from bcq.cli import main, parser
from bcq.commands.bench import chosen_plan

Run = Callable[..., tuple[int, str, str]]
TINY = ("--shapes", "48x96", "--weights", "hot", "--threads", "1", "--rounds", "2", "--peers", "none")


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is read in 64 KiB instead of 192 MiB."""
    monkeypatch.setattr(measure, "ReadBandwidth", lambda threads: ReadBandwidth(threads, 2**16))


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``bcq bench`` in this process: exit code, standard output, standard error."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        code = main(["bench", *map(str, words)])
        return code, *capsys.readouterr()

    return run


def planned(*words: str) -> plan.Plan:
    return chosen_plan(parser().parse_args(["bench", *words]))


def test_without_options_the_readmes_table_is_planned() -> None:
    chosen = planned()
    assert chosen.problems == plan.default_problems()
    assert (chosen.bits, chosen.peers, chosen.arithmetics) == ((2, 3, 4), "main", plan.ARITHMETICS)


def test_each_named_plan_has_its_problems() -> None:
    assert planned("--quick").problems == plan.quick_problems()
    assert planned("--goals").problems == plan.goal_problems()
    full = planned("--full")
    assert (full.problems, full.peers, full.bits) == (plan.full_problems(), "all", (1, 2, 3, 4))
    assert planned("--cost-table", "x.json").problems == plan.cost_problems()
    assert planned("--cost-table", "x.json", "--quick").problems == plan.cost_problems(quick=True)


def test_full_has_every_shape_and_batch_hot_and_cold() -> None:
    problems = plan.full_problems()
    assert len({(p.rows, p.inputs) for p in problems}) == 10
    assert {p.tokens for p in problems} == {1, 4, 32, 256}
    assert {p.cold for p in problems if p.tokens < 32} == {True, False}
    assert len(set(problems)) == len(problems)


def test_options_replace_what_the_plan_says() -> None:
    words = "--shapes 64x32 64x32 --tokens 1 2 --weights hot cold --threads 1 --bits 3 3 --accuracy-level 4"
    chosen = planned(*words.split(), "--residence", "mapped", "resident", "--peers", "all")
    assert chosen.problems == plan.problems([(64, 32)], (1, 2), (1,), (False, True))
    assert (chosen.bits, chosen.arithmetics, chosen.peers) == ((3,), ("int8",), "all")
    assert chosen.weights == ("mapped", "resident")


def test_a_dry_run_lists_what_would_run_and_measures_nothing(
    bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_Entry", None)  # the first one would fail
    code, out, _ = bench("--dry-run", "--goals")
    assert code == 0
    assert "N=4096 K=4096, weights in cache: M=1 on 1" in out
    assert "BcqMatMul q=2 g=128" in out
    assert "of temporary files at a time" in out
    code, out, _ = bench("--dry-run", "--full", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["problems"] == len(plan.full_problems())
    assert data["seconds"] > 60


def test_all_files_are_written(bench: Run, tmp_path: Path) -> None:
    files = ("--svg", tmp_path / "a.svg", "--output", tmp_path / "all", "--cost-table", tmp_path / "c.json")
    code, out, err = bench(*TINY, "--bits", "2", *files)
    assert (code, "of temporary" in out) == (0, False)
    assert "leave the machine alone" in err
    assert "BcqMatMul q=2 g=128" in out
    assert sorted(file.name for file in (tmp_path / "all").iterdir()) == [
        "48x96.svg", "bench.json", "bench.md", "bench.txt", "summary.md",
    ]  # fmt: skip
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "all" / "48x96.svg").read_text()
    assert CostTable.read(tmp_path / "c.json").microseconds(48, 96, 2, 128) > 0
    assert json.loads((tmp_path / "all" / "bench.json").read_text())["measurements"]


def test_markdown_is_the_table_alone_and_json_one_object(bench: Run) -> None:
    assert all(line.startswith("|") for line in bench(*TINY, "--markdown")[1].splitlines())
    data = json.loads(bench(*TINY, "--json")[1])
    assert {m["contender"] for m in data["measurements"]} >= {"BcqMatMul q=3 g=128"}


def test_goals_are_judged(bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "COLD_BYTES", 20_000)
    goals = ("--goals", "--shapes", "48x96", "--rounds", "1", "--output", tmp_path / "out")
    data = json.loads(bench(*goals, "--json")[1])
    assert {goal["bits"] for goal in data["goals"]} == {2, 3, 4}
    assert all(goal["measured"] for goal in data["goals"] if "ggml" not in goal["against"])
    assert (tmp_path / "out" / "goals.md").read_text().startswith("## Goals")


@pytest.mark.parametrize(("load", "said"), [(0.4, False), (7.5, True)])
def test_a_busy_machine_is_told(bench: Run, monkeypatch: pytest.MonkeyPatch, load: float, said: bool) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    _, out, err = bench(*TINY)
    assert ("the machine is busy, load 7.5 on 2 cores" in err) == said
    assert f"load {load}" in out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--tokens 0", "E202", "--tokens: got 0"),
        ("--bits 9", "E202", "--bits: got 9, expected at most 8"),
        ("--rounds 0", "E202", "--rounds: got 0"),
        ("--group-size 33", "E202", "--group-size: got 33"),
        ("--group-size -32", "E202", "--group-size: got -32"),
        ("--shapes 4096", "E202", "--shapes '4096'"),
        ("--shapes 0x8", "E202", "--shapes '0x8'"),
        ("--accuracy-level 2", "E202", "--accuracy-level"),
        ("--goals --tokens 4", "E202", "--goals has its own problems"),
        ("--goals --quick", "E202", "not allowed with"),
        ("--full --cost-table x.json", "E202", "--cost-table has its own plan"),
        ("--end-to-end gpt2-small --dry-run", "E202", "--dry-run says nothing about --end-to-end"),
        ("--cost-table x.json --residence mapped resident", "E202", "takes one --residence"),
        ("--svg none/such/a.svg", "E101", "is no folder"),
        ("--shapes 64x64", "E202", "--weights hot"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    bench: Run, monkeypatch: pytest.MonkeyPatch, words: str, code: str, told: str
) -> None:
    monkeypatch.setattr(measure, "_Entry", None)
    exit_code, out, err = bench(*words.split())
    assert (exit_code, out) == ({"E202": 2, "E101": 3}[code], "")
    assert f"error[{code}]" in err
    assert told in err


def test_too_little_disk_is_refused_before_anything_is_written(
    bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    code, _, err = bench("--goals")
    assert code == 6
    assert "error[E601]" in err
    assert "TMPDIR" in err


def test_a_signal_in_the_middle_of_making_or_removing_a_folder_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make, remove = Path.mkdir, shutil.rmtree

    def interrupted_make(path: Path, mode: int) -> None:
        make(path, mode)
        raise KeyboardInterrupt

    def interrupted_remove(path: Path, ignore_errors: bool) -> None:
        monkeypatch.setattr(shutil, "rmtree", remove)  # the second try is left alone
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", interrupted_make)
        with pytest.raises(KeyboardInterrupt), scratch_folder():
            pass
    monkeypatch.setattr(shutil, "rmtree", interrupted_remove)
    with pytest.raises(KeyboardInterrupt), scratch_folder() as folder:
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_folder_behind(tmp_path: Path, number: int, code: int) -> None:
    words = ["--shapes", "48x96", "--weights", "hot", "--peers", "none", "--rounds", "1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bcq.cli", "bench", "--quiet", *words],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            if list(tmp_path.glob("bcq-bench-*/*/model.onnx")):
                break
            time.sleep(0.1)
        else:
            pytest.fail("no model was written within a minute")
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.glob("bcq-*")) == []  # onnxruntime itself may leave a file of its own
