# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, one-line errors, JSON, and that help is quick."""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq import cli
from bcq.commands import VERBS, bench
from bcq.commands.run import parse_tokens
from bcq.errors import UsageError
from bcq.matrices import listing

DEMO = Path(str(files("bcq") / "demo_model"))
NAMES = [verb.__name__.rpartition(".")[2].rstrip("_") for verb in VERBS]
needs_compiler = pytest.mark.skipif(
    not all(find_spec(name) for name in ("torch", "transformers")),
    reason="needs the extra `compile`",
)


def bcq(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bcq.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def the_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, which must be exactly one line; nothing may be on standard output."""
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line]
    assert captured.out == ""
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model that a test may damage."""
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def replace_weight(model: Path, name: str, place: int, value: float) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors[name].reshape(-1)[place] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"bcq {name}" in text
    assert all(flag in text for flag in ("--json", "--quiet", "--debug"))


def test_every_command_line_in_help_and_readme_is_valid() -> None:
    readme = Path(__file__).parents[1] / "README.md"
    texts = [cli.EPILOG, *(verb.EXAMPLES for verb in VERBS), readme.read_text(encoding="utf-8")]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("bcq ")]
    assert len(commands) > 25
    for command in commands:
        words = shlex.split(command, comments=True)
        assert cli.parser().parse_args(words[1:]).command == words[1], command


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    heavy = "{'numpy', 'onnxruntime', 'onnx', 'torch', 'transformers', 'rich'}"
    code = (
        f"import sys; from bcq.cli import main; main(['--help']); sys.exit(len({heavy} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    # CPU time, because other programs on the machine do not change it much; the promise is 0.3 s of wall time
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bcq ")


def test_no_word_at_all_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert printed == capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["qunatize"],
        ["export"],
        ["export", "model"],
        ["quantize", "m", "-o", "o", "--bits", "three"],
        ["quantize", "m", "-o", "o", "--method", "magic"],
        ["run", "out"],
        ["run", "out", "-p", "a", "--tokens", "1"],
        ["verify", "out", "--steps", "0"],
        ["verify", "out", "--steps", "-1"],
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert the_error(capsys).startswith("error[E202]: ")


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{missing}"],
        ["quantize", "{missing}", "-o", "{out}"],
        ["quantize", "{missing}", "-o", "{out}", "--dry-run"],
        ["export", "{missing}", "-o", "{out}"],
        ["export", "{missing}.onnx", "-o", "{out}"],
        ["verify", "{missing}", "--against", "{missing}"],
        ["run", "{missing}", "-p", "a"],
        ["eval", "{missing}", "--text", "{missing}"],
    ],
)
def test_a_folder_that_does_not_exist_is_exit_code_3(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"missing": str(tmp_path / "nowhere"), "out": str(tmp_path / "out")}
    assert cli.main([word.format(**places) for word in words]) == 3
    line = the_error(capsys)
    assert line.startswith("error[E101]: ")
    assert "nowhere" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["quantize", "export"])
@needs_compiler
def test_a_truncated_file_is_named_and_leaves_no_output(
    verb: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert cli.main([verb, str(model), "-o", str(tmp_path / "out")]) == 3
    line = the_error(capsys)
    assert line.startswith("error[E103]: ")
    assert "model.safetensors" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@needs_compiler
def test_a_weight_that_is_not_finite_is_named_and_leaves_no_output(
    value: float, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    replace_weight(model, name, 3, value)
    assert cli.main(["quantize", str(model), "-o", str(tmp_path / "out"), "--quiet"]) == 3
    line = the_error(capsys)
    assert line.startswith("error[E106]: ")
    assert name in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("verb", ["quantize", "export", "inspect"])
@needs_compiler
def test_a_pattern_that_matches_nothing_names_the_closest(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [] if verb == "inspect" else ["-o", str(tmp_path / "out")]
    assert cli.main([verb, str(DEMO), *output, "--set", "h.*.mpl.c_fc=4"]) == 2
    line = the_error(capsys)
    assert line.startswith("error[E201]: ")
    assert "h.*.mlp.c_fc" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--bits", "0"],
        ["--bits", "9"],
        ["--group-size", "100"],
        ["--group-size", "-32"],
        ["--set", "wte"],
        ["--set", "wte=9"],
        ["--seed", "-1"],
    ],
)
@pytest.mark.parametrize("verb", ["quantize", "export", "inspect"])
def test_an_option_out_of_range_is_exit_code_2(
    verb: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [] if verb == "inspect" else ["-o", str(tmp_path / "out")]
    assert cli.main([verb, str(DEMO), *output, *options]) == 2
    assert the_error(capsys).startswith("error[E202]: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["quantize", "export"])
@needs_compiler
def test_a_foreign_output_folder_is_left_alone(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert cli.main([verb, str(DEMO), "-o", str(tmp_path), "--quiet"]) == 2
    assert the_error(capsys).startswith("error[E203]: ")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@needs_compiler
def test_quantize_prints_a_summary_and_progress_goes_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["quantize", str(DEMO), "-o", str(tmp_path / "base"), "--method", "greedy"]) == 0
    captured = capsys.readouterr()
    assert "18 of 18 matrices, 100.0% of matrix bytes" in captured.out
    assert "3.38 bits each" in captured.out  # 3 + 3 * 16 / 128
    assert "quantize 18/18 " in captured.err


@needs_compiler
def test_quantize_quietly_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    assert cli.main(["quantize", str(DEMO), "-o", str(base), "--method", "greedy", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert json.loads((base / "MANIFEST.json").read_text())["command"][:2] == ["bcq", "quantize"]


@needs_compiler
def test_quantize_with_json_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(DEMO), "-o", str(tmp_path / "base"), "--method", "greedy", "--json"]
    assert cli.main([*words, "--set", "wpe=keep"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["packed"], found["total"], found["share"]) == (17, 18, 1.0)
    assert found["bytes_after"] == (tmp_path / "base" / "model.safetensors").stat().st_size
    kept = next(matrix for matrix in found["matrices"] if matrix["name"] == "transformer.wpe.weight")
    assert kept["bits"] is None
    assert "wpe=keep" in kept["reason"]


@needs_compiler
def test_a_dry_run_says_what_quantize_then_does_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", str(DEMO), "-o", str(tmp_path / "base"), "--set", "h.*.mlp.*=2", "--json"]
    assert cli.main([*words, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "base").exists()
    assert cli.main([*words, "--method", "greedy"]) == 0
    done = json.loads(capsys.readouterr().out)
    columns = ("name", "bits", "packed_bytes")
    assert [[row[c] for c in columns] for row in planned["matrices"]] == [
        [row[c] for c in columns] for row in done["matrices"]
    ]


@needs_compiler
def test_a_dry_run_of_an_export_is_that_of_quantize(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(DEMO), "-o", str(tmp_path / "out"), "--bits", "2", "--dry-run", "--json"]
    shown = []
    for verb in ("export", "quantize"):
        assert cli.main([verb, *words]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0] == shown[1]
    assert cli.main(["export", *words, "--kv-cache", "int8", "--attention", "plain"]) == 2
    assert not (tmp_path / "out").exists()


@needs_compiler
def test_inspect_lists_every_matrix_and_says_why_one_stays_dense(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(DEMO), "--no-embeddings"]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| transformer.wte.weight"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == ["1536 x 128", "embedding", "-", "-", "-", "786,432", "kept by --no-embeddings"]
    assert "shares the matrix of transformer.wte.weight" in text
    assert "16 of 18 matrices packed" in text


def test_an_error_with_json_is_an_object_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path / "nowhere"), "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "E101"
    assert captured.err.startswith("error[E101]: ")


def raises(error: BaseException) -> Any:
    def failing(*arguments: object, **options: object) -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (RuntimeError("a\nb"), 1, "error[E999]: unexpected RuntimeError: a b. A bug: run again with --debug"),
        (MemoryError(), 6, "error[E602]: out of memory."),
        (
            OSError(errno.ENOSPC, "No space left", "/x/y"),
            6,
            "error[E601]: no space left on the disk of '/x/y'.",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            3,
            "error[E101]: '/x': Permission denied.",
        ),
        (ModuleNotFoundError("no", name="torch"), 6, "error[E603]: the package 'torch' is not installed."),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_failure_of_any_kind_is_one_line(
    error: BaseException,
    code: int,
    start: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(listing, "planned_matrices", raises(error))
    assert cli.main(["inspect", "model"]) == code
    assert the_error(capsys).startswith(start)


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "planned_matrices", raises(RuntimeError("deep")))
    assert cli.main(["inspect", "model", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_libraries_print_does_not_reach_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(*arguments: object) -> list[Any]:
        print("a library says hello")
        return []

    monkeypatch.setattr(listing, "planned_matrices", chatty)
    assert cli.main(["inspect", "model", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["matrices"] == []
    assert "hello" in captured.err


def test_a_bar_is_closed_before_an_error_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="rich comes with the extra `compile`")
    closed = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("bcq.progress.RichBar.done", lambda bar: closed.append(bar))
    monkeypatch.setattr("bcq.evaluate.perplexity", raises(RuntimeError()))
    (tmp_path / "text").write_text("a")
    assert cli.main(["eval", "out", "--text", str(tmp_path / "text")]) == 1
    assert len(closed) == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = (
        "import sys; from bcq import cli; from bcq.matrices import listing\n"
        "def planned(*arguments): raise BrokenPipeError\n"
        "listing.planned_matrices = planned\n"
        "sys.exit(cli.main(['inspect', 'model']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (cli.PIPE_CLOSED, "", "")


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    done = bcq("inspect", str(tmp_path / "nowhere"))
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error[E101]: ")
    assert len(done.stderr.splitlines()) == 1


def test_doctor_names_library_and_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"library", "cpu", "kernels"} <= set(facts)
    assert cli.main(["doctor"]) == 0
    assert "library path" in capsys.readouterr().out


def test_token_ids_are_read_from_commas_or_spaces() -> None:
    assert parse_tokens("1, 2,3 4") == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="expected numbers"):
        parse_tokens("1,two")


@pytest.mark.parametrize("text", ["", "4096", "4096x", "x4", "0x5", "axb", "-1x4", "4x4x4"])
def test_a_shape_that_is_not_two_numbers_is_refused(text: str) -> None:
    assert bench.parse_shape("4096x1024") == (4096, 1024)
    with pytest.raises(UsageError, match="expected two numbers"):
        bench.parse_shape(text)


def test_bench_refuses_numbers_below_one(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--bits", "0"], ["--threads", "0"], ["--tokens", "0"], ["--rounds", "0"]):
        assert cli.main(["bench", *words]) == 2
        assert the_error(capsys).startswith("error[E202]: ")
