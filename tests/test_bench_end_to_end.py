# SPDX-License-Identifier: Apache-2.0
"""The end-to-end bench: turns in processes of their own, checks, ratios, pictures, shares of a step."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from bcq.bench.end_to_end import engine, figure, measure, prepare, profile, tables, worker
from bcq.bench.end_to_end.gguf_file import interleaved
from bcq.bench.end_to_end.plan import Entrant, Plan
from bcq.bench.end_to_end.process import EngineFailure, Process
from bcq.bench.end_to_end.result import EndToEnd, Spread, Standing
from bcq.bench.end_to_end.shapes import SHAPES
from bcq.cli import main
from bcq.errors import ParityFailure
from fake_engine import SCORES, FakeEngine


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find the fake engine, and nobody waits for threads that do not spin."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(measure, "SETTLE", 0.0)
    monkeypatch.setattr(Entrant, "module", "fake_engine")


def entrant(name: str, folder: Path, family: str = "llama.cpp") -> Entrant:
    return Entrant(name, family, 4, folder / name, folder, 1000)


def field(folder: Path, *entrants: Entrant) -> prepare.Field:
    (folder / "config.json").write_text(json.dumps({"vocab_size": 50}))
    return prepare.Field("fake", folder, list(entrants))


def plan(folder: Path, **changes: Any) -> Plan:
    return Plan(**{"source": "x", "work": folder, "rounds": 2, "tokens": 4, "prompt": 8, **changes})


def test_a_process_answers_with_tokens_times_scores_and_its_own_memory(tmp_path: Path) -> None:
    with Process("fake_engine", tmp_path / "steady", 1) as process:
        turn = process.generate([1, 2], 3)
        assert turn.tokens == [7, 8, 9]
        assert turn.first > 0
        assert turn.rest > 0
        assert np.array_equal(process.logits([1]), SCORES)
        peak, _ = process.memory()
        assert 5e6 < peak < 500e6  # Python and numpy alone take about 30 MB


def test_what_an_engine_raises_and_a_death_are_told(tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match="no such format"):
        Process("fake_engine", tmp_path / "broken", 1)
    with pytest.raises(EngineFailure, match="its process ended with 1: killed by its own library"):
        Process("fake_engine", tmp_path / "dying", 1)


def test_a_process_that_has_died_is_closed_without_complaint(tmp_path: Path) -> None:
    with Process("fake_engine", tmp_path / "steady", 1) as process:
        process._child.kill()
        process._child.wait()
        with pytest.raises(EngineFailure, match="ended with -9: without a word"):
            process.generate([1], 2)


def test_contenders_take_turns_and_those_that_fail_are_listed_with_a_reason(tmp_path: Path) -> None:
    SCORES.tofile(tmp_path / "reference")
    entrants = [entrant(name, tmp_path) for name in ("steady", "fickle", "broken")]
    result = measure.measure(plan(tmp_path), field(tmp_path, entrant("ours", tmp_path, "bcq"), *entrants))
    assert [s.name for s in result.standings] == ["ours", "steady"]
    assert {s.rounds for s in result.standings} == {2}
    assert "other tokens" in result.absent["fickle"]
    assert "no such format" in result.absent["broken"]


def test_a_peer_that_computes_something_else_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_reference", lambda *_: SCORES)
    found = field(tmp_path, entrant("same", tmp_path), entrant("other", tmp_path))
    result = measure.measure(plan(tmp_path), found)
    assert [s.name for s in result.standings] == ["same"]
    assert result.standings[0].likeness == pytest.approx(1.0)
    assert "cosine of -1.00" in result.absent["other"]


def test_a_fault_of_ours_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ParityFailure, match="other tokens"):
        measure.measure(plan(tmp_path), field(tmp_path, entrant("fickle", tmp_path, "bcq")))


def test_the_floor_takes_few_turns_of_few_tokens(tmp_path: Path) -> None:
    found = field(tmp_path, entrant("slow", tmp_path, "torch"))
    result = measure.measure(plan(tmp_path, rounds=4, tokens=20), found)
    assert result.standings[0].rounds == 2


def test_a_worker_answers_line_by_line() -> None:
    said = io.StringIO()
    asked = io.StringIO('{"do": "generate", "prompt": [1], "count": 2}\n{"do": "memory"}\n')
    worker.serve(lambda: (FakeEngine(Path("x")), 0.5), asked, said)
    load, turn, memory = map(json.loads, said.getvalue().splitlines())
    assert load == {"load": 0.5}
    assert turn["tokens"] == [7, 8]
    assert memory["peak"] >= memory["private"] > 0


def test_cosine_ignores_a_shift_and_is_unknown_without_a_reference() -> None:
    assert measure.cosine(SCORES, SCORES * 2 + 5) == pytest.approx(1.0)
    assert math.isnan(measure.cosine(SCORES, None))
    assert math.isnan(measure.cosine(SCORES, SCORES[:2]))


def test_a_thing_is_made_once_and_appears_whole(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        prepare.made(tmp_path / "a" / "file", fails)
    assert not (tmp_path / "a" / "file").exists()
    made = prepare.made(tmp_path / "a" / "file", lambda path: path.write_text("whole"))
    assert prepare.made(made, fails).read_text() == "whole"


def test_interleaved_rows_pair_the_halves_of_each_head() -> None:
    rows = np.arange(8)[:, None] * np.ones((1, 3))
    assert interleaved(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_stand_in_has_about_as_many_weights_as_the_shape_it_stands_for() -> None:
    for name in ("gpt2-small", "gpt2-medium"):
        gpt2, llama = SHAPES[name].sizes, SHAPES[SHAPES[name].stand_in].sizes
        width, inner = gpt2["n_embd"], llama["intermediate_size"]
        assert 4 * width**2 + 3 * width * inner == pytest.approx(12 * width**2, rel=0.02)
        assert llama["num_hidden_layers"] == gpt2["n_layer"]


def standing(name: str, bits: int, rate: float, megabytes: float = 100) -> Standing:
    family = name.split()[0]
    spread = Spread(rate, rate * 0.95, rate * 1.05)
    return Standing(
        name, family, bits, spread, spread, Spread(0.1, 0.1, 0.1), 0.5, int(megabytes * 2e6), 0,
        int(megabytes * 1e6), 0.9 if bits > 2 else float("nan"), 3,
    )  # fmt: skip


def result(*standings: Standing) -> EndToEnd:
    where = {"cpu": "Test CPU", "cores": 2, "load": 0.1, "isa": "avx2", "library": "0", "onnxruntime": "1"}
    return EndToEnd(
        "model", 2, 128, 64, {**where, "made": "today"}, standings, {"llama.cpp Q2_K": "not there"}
    )


def test_ratios_are_to_the_best_peer_and_sizes_count_the_other_way() -> None:
    mine = standing("bcq 4-bit", 4, 120, megabytes=80)
    peers = [standing("llama.cpp Q4_0", 4, 100, 90), standing("genai int4 b32", 4, 60, 120)]
    faster, fastest = tables.ratio_to_best(mine, peers, "decode")
    smaller, smallest = tables.ratio_to_best(mine, peers, "file")
    assert (fastest, smallest) == (peers[0], peers[0])
    assert [faster, smaller] == pytest.approx([1.2, 90 / 80])


def test_the_page_judges_each_goal_whose_contenders_were_there() -> None:
    page = tables.to_markdown(
        result(
            standing("bcq 4-bit", 4, 120), standing("bcq 3-bit", 3, 90), standing("llama.cpp Q4_0", 4, 100)
        )
    )
    lines = [line for line in page.splitlines() if "| decode" in line]
    assert [("reached" in line, "missed" in line) for line in lines] == [(True, False), (False, True)]
    assert "- absent: llama.cpp Q2_K: not there" in page


def test_the_picture_is_whole_and_names_everybody_but_the_floor() -> None:
    everybody = [standing(f"bcq {bits}-bit", bits, 100, 30 * bits) for bits in (2, 3, 4)]
    picture = figure.figure(result(*everybody, standing("torch float32", 32, 5, 1400)))
    words = [node.text for node in ET.fromstring(picture).iter() if node.text]
    assert {"bcq 2-bit", "bcq 3-bit", "bcq 4-bit"} <= set(words)
    assert "torch float32" not in words


def test_ticks_are_round_and_few() -> None:
    assert figure.ticks(0, 130, 6) == [0, 50, 100]
    assert all(len(figure.ticks(low, high, 7)) <= 7 for low, high in ((0.1, 3), (90, 900), (0, 1e4)))


def trace(*runs: Sequence[tuple[str, str, float]]) -> list[dict[str, Any]]:
    """Events of a profile: one run of 1000 us after the other, with its kernels (node, type, us)."""
    events: list[dict[str, Any]] = []
    for i, kernels in enumerate(runs):
        events.append({"cat": "Session", "name": "model_run", "ts": 1000.0 * i, "dur": 1000.0})
        events += [
            {
                "cat": "Node",
                "name": f"{node}_kernel_time",
                "ts": 1000.0 * i + at,
                "dur": dur,
                "args": {"op_name": op},
            }
            for at, (node, op, dur) in enumerate(kernels)
        ]
    return events


def test_shares_are_medians_over_the_single_token_runs() -> None:
    step = [
        ("a", "BcqMatMul", 60.0),
        ("b", "BcqMatMul", 20.0),
        ("c", "GroupQueryAttention", 10.0),
        ("d", "Add", 10.0),
    ]
    prompt = [("a", "BcqMatMul", 900.0)]
    found = profile.shares(trace(prompt, step, step, step), steps=3, name="x", threads=1)
    assert found.operators == {"BcqMatMul": 80.0, "GroupQueryAttention": 10.0, "Add": 10.0}
    assert found.nodes["a"] == 60.0
    assert found.products_and_attention == pytest.approx(0.9)
    assert "90.0%" in profile.to_table([found])


def test_a_shape_is_made_exported_verified_measured_and_profiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # the real engines
    words = (
        "--end-to-end gpt2-tiny --bits 3 --peers none --rounds 1 --tokens 4 --prompt 8 --threads 1 --profile"
    )
    places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    assert main(["bench", *words.split(), *places, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    ours = told["standings"][0]
    assert ours["likeness"] > 0.5
    assert ours["file_bytes"] < 1e6
    assert told["shares"][0]["operators"]["BcqMatMul"] > 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        f"gpt2-tiny.{end}" for end in ("json", "md", "svg")
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--end-to-end nowhere", "no such folder"),
        ("--end-to-end gpt2-tiny --shapes 64x64", "--shapes does not go with"),
        ("--end-to-end gpt2-tiny --threads 1 2", "takes one"),
        ("--end-to-end gpt2-tiny --tokens 1", "at least 2"),
        ("--end-to-end gpt2-tiny --prompt 2", "at least 8"),
        ("--end-to-end gpt2-tiny --prepare", "--work"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words.split()]) in (2, 3)
    assert reason in capsys.readouterr().err


def test_resident_bytes_are_those_of_this_process() -> None:
    peak, private = engine.resident_bytes()
    assert peak >= private > 10e6
