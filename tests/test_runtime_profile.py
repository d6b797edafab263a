# SPDX-License-Identifier: Apache-2.0
"""A profile holds one line per node: which kernel ran it, how often and how long for each number of rows."""

from __future__ import annotations

import gc
import json
import locale
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq import contract
from bcq.errors import UsageError
from bcq.kernels.core import Core
from bcq.runtime import session
from nodes import activations, one_node, open_session, random_weight

WEIGHT = random_weight(48, 64, 3, 32)
CORE = Core.load()
RUNTIME = Path(__file__).parents[1] / "runtime"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCQ_WEIGHTS", raising=False)
    monkeypatch.delenv("BCQ_PROFILE", raising=False)


def lines(path: Path) -> list[dict[str, Any]]:
    gc.collect()  # a session ends when nobody holds it
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def profiled(path: Path, *rows: int, weights: str = "mapped") -> list[dict[str, Any]]:
    """The lines that a session leaves which runs a BcqMatMul on so many rows each time."""
    entries = {"bcq.profile": str(path), "bcq.weights": weights}
    opened = open_session(one_node(contract.MATMUL, WEIGHT, dims=("m",)), entries=entries)
    for count in rows:
        opened.run(None, {"A": activations(count, 64)})
    del opened
    return lines(path)


def test_a_node_is_one_line_with_its_kernel_and_a_count_for_each_number_of_rows(tmp_path: Path) -> None:
    (line,) = profiled(tmp_path / "p.jsonl", 1, 5, 1, 1)
    runs = line.pop("runs")
    assert line == {
        "node": "the_node",
        "op": "BcqMatMul",
        "kernel": CORE.select_matmul(bits=3, K=64, N=48, group_size=32, flags=CORE.flags()),
        "weights": "mapped",
        "bits": 3,
        "K": 64,
        "N": 48,
        "group_size": 32,
        "accuracy_level": 0,
    }
    assert [(run["M"], run["calls"]) for run in runs] == [(1, 3), (5, 1)]
    assert all(0 < run["us"] < 60e6 for run in runs)


def test_resident_weights_are_told(tmp_path: Path) -> None:
    (line,) = profiled(tmp_path / "p.jsonl", 1, weights="resident")
    assert line["weights"] == "resident"


def test_by_itself_the_library_copies_where_the_kernel_has_an_order_of_its_own(tmp_path: Path) -> None:
    (line,) = profiled(tmp_path / "p.jsonl", 1, weights="auto")
    assert line["weights"] == ("resident" if CORE.has_own_order(line["kernel"]) else "mapped")


def test_sessions_append_to_a_profile(tmp_path: Path) -> None:
    profiled(tmp_path / "p.jsonl", 1)
    assert len(profiled(tmp_path / "p.jsonl", 1)) == 2


def test_a_gather_is_profiled_by_its_number_of_indices(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    model = one_node(contract.GATHER, WEIGHT, np.int64, ("b", "s"))
    opened = open_session(model, entries={"bcq.profile": str(path)})
    opened.run(None, {"indices": np.zeros((2, 3), np.int64)})
    del opened
    (line,) = lines(path)
    assert (line["op"], line["kernel"]) == ("BcqGather", CORE.select_gather(flags=CORE.flags()))
    assert [(run["M"], run["calls"]) for run in line["runs"]] == [(6, 1)]


def test_the_environment_variable_profiles_programs_that_set_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.jsonl"
    monkeypatch.setenv("BCQ_PROFILE", str(path))
    opened = open_session(one_node(contract.MATMUL, WEIGHT, dims=("m",)))
    opened.run(None, {"A": activations(1, 64)})
    del opened
    assert len(lines(path)) == 1


def test_concurrent_runs_are_all_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    model = one_node(contract.MATMUL, WEIGHT, dims=("m",))
    held = [open_session(model, entries={"bcq.profile": str(path)})]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: held[0].run(None, {"A": activations(1 + i % 4, 64)}), range(800)))
    held.clear()
    (line,) = lines(path)
    assert {run["M"]: run["calls"] for run in line["runs"]} == {1: 200, 2: 200, 3: 200, 4: 200}


def test_a_name_with_quotes_and_controls_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    model = one_node(contract.MATMUL, WEIGHT, dims=("m",))
    model.graph.node[0].name = 'a"b\\c\n$(d)é'
    open_session(model, entries={"bcq.profile": str(path)})
    (line,) = lines(path)
    assert line["node"] == 'a"b\\c?$(d)??'
    assert line["runs"] == []


def test_a_profile_that_cannot_be_written_at_the_end_costs_a_line_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    path = folder / "p.jsonl"
    model = one_node(contract.MATMUL, WEIGHT, dims=("m",))
    opened = open_session(model, entries={"bcq.profile": str(path)})
    path.unlink()
    folder.rmdir()
    del opened
    gc.collect()
    assert f"bcq: the profile {path} cannot be written" in capfd.readouterr().err


def test_a_disk_that_fills_up_inside_a_line_leaves_whole_lines_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    profiled(path, 1)
    model = tmp_path / "model.onnx"
    model.write_bytes(one_node(contract.MATMUL, WEIGHT, dims=("m",)).SerializeToString())
    before = path.read_bytes()
    # The limit of a file's size cuts the second line like a full disk. Python ignores the signal of it.
    program = (
        "import resource, sys; from bcq.runtime import session\n"
        "opened = session(sys.argv[1], profile=sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)\n"
        "del opened\n"
    )
    command = [sys.executable, "-c", program, str(model), str(path), str(len(before) + 20)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"bcq: the profile {path} cannot be written: No space left on device" in done.stderr
    assert path.read_bytes() == before


def test_a_locale_with_a_decimal_comma_leaves_numbers_of_json(tmp_path: Path) -> None:
    found = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=True).stdout.split()
    commas = [name for name in found if name.lower().startswith(("de_", "fr_", "es_", "it_", "pt_"))]
    if not commas:
        source = (RUNTIME / "ort" / "profile.cc").read_text(encoding="utf-8")
        assert "%.3f" not in source
        assert "std::to_string(time.count()" in source
        return
    old = locale.setlocale(locale.LC_NUMERIC)
    locale.setlocale(locale.LC_NUMERIC, commas[0])
    try:
        (line,) = profiled(tmp_path / "p.jsonl", 1)
    finally:
        locale.setlocale(locale.LC_NUMERIC, old)
    assert 0 < line["runs"][0]["us"] < 60e6


def test_a_node_that_is_refused_leaves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    model = one_node(contract.MATMUL, WEIGHT, dims=("m",))
    model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value = 65
    with pytest.raises(Exception, match=r"expected"):
        open_session(model, entries={"bcq.profile": str(path)})
    assert lines(path) == []


def test_the_session_of_the_package_takes_both_choices(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(one_node(contract.MATMUL, WEIGHT, dims=("m",)).SerializeToString())
    for weights in ("mapped", "resident"):
        path = tmp_path / f"{weights}.jsonl"
        opened = session(tmp_path, weights=weights, profile=path)
        opened.run(None, {"A": activations(2, 64)})
        del opened
        (line,) = lines(path)
        assert (line["weights"], line["runs"][0]["M"]) == (weights, 2)
    with pytest.raises(
        UsageError, match=r"E202.*bcq\.weights: got 'both', expected auto, mapped or resident"
    ):
        session(tmp_path, weights="both")
