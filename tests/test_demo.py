# SPDX-License-Identifier: Apache-2.0
"""The demo, and the verbs on what it exports: the chain as a user meets it."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bcq import cli, demo

DEMO = Path(str(files("bcq") / "demo_model"))
pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ("torch", "transformers")), reason="needs the extra `compile`"
)
BITS = 3


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = cli.main([*words, "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[demo.DemoResult, Path]:
    output = tmp_path_factory.mktemp("demo")
    return demo.run([BITS], output), output


@pytest.fixture(scope="module")
def out(result: tuple[demo.DemoResult, Path]) -> Path:
    return result[1] / f"q{BITS}"


def test_the_shipped_model_is_at_most_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*")) <= 2_000_000


def test_the_demo_measures_the_dense_and_the_packed_model(result: tuple[demo.DemoResult, Path]) -> None:
    found = result[0]
    dense, packed = found.lines
    assert found.ok
    assert (dense.bits, packed.bits) == (32, BITS)
    assert dense.perplexity == pytest.approx(found.reference, rel=1e-4)  # float32 sums in another order
    assert found.reference < packed.perplexity < 2 * found.reference  # 3 bits cost something, not everything
    assert 0.5 < packed.agreement < dense.agreement
    # 32 bits against 3 + 3 * 16 / 128, of all weights but norms and biases, which stay dense
    assert 8 < dense.weight_bytes / packed.weight_bytes < 32 / 3.375
    assert packed.weight_bytes < packed.file_bytes < dense.file_bytes / 5


def test_the_demo_prints_one_line_a_model_and_its_text(result: tuple[demo.DemoResult, Path]) -> None:
    text = demo.text(result[0])
    assert "| fp32 " in text
    assert f"| {BITS} bits " in text
    assert f"{BITS} bits: {demo.PROMPT}" in text
    assert "all models compute what PyTorch computes" in text


def test_a_demo_with_a_parity_failure_says_so(result: tuple[demo.DemoResult, Path]) -> None:
    from dataclasses import replace

    broken = replace(result[0], lines=[replace(result[0].lines[1], ok=False)])
    assert not broken.ok
    assert "PARITY FAILED" in demo.text(broken)


def test_the_demo_refuses_bits_out_of_range_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = command(capsys, "demo", "--bits", "3", "9")
    assert (code, answer["error"]["code"]) == (2, "E202")


def test_the_demo_refuses_a_folder_that_holds_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q3").mkdir()  # the name of an export, but none
    (tmp_path / "notes.txt").write_text("precious", encoding="utf-8")
    for output, named in ((tmp_path, "notes.txt"), (tmp_path / "notes.txt", "is not a folder")):
        code, answer = command(capsys, "demo", "--output", str(output))
        assert (code, answer["error"]["code"]) == (2, "E203")
        assert named in answer["error"]["message"]
    (tmp_path / "notes.txt").unlink()
    code, answer = command(capsys, "demo", "--output", str(tmp_path))
    assert (code, "holds 'q3'" in answer["error"]["message"]) == (2, True)


def test_the_demo_takes_the_folder_of_an_earlier_one(result: tuple[demo.DemoResult, Path]) -> None:
    demo._check_output(result[1])


def test_verify_says_that_an_export_computes_what_pytorch_computes(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = command(capsys, "verify", str(out), "--against", str(DEMO), "--per-layer")
    assert code == 0
    assert answer["ok"]
    assert answer["relative"] <= answer["tolerance"]
    assert cli.main(["verify", str(out), "--against", str(DEMO)]) == 0
    assert "parity        ok" in capsys.readouterr().out


def test_a_failed_parity_is_exit_code_5(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from bcq import parity

    true = parity.verify(out)
    monkeypatch.setattr(parity, "verify", lambda *words, **options: replace(true, ok=False))
    code, answer = command(capsys, "verify", str(out))
    assert (code, answer["ok"]) == (5, False)


def test_run_continues_text_with_text_and_ids_with_ids(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = command(capsys, "run", str(out), "-p", demo.PROMPT, "-n", "8")
    assert code == 0
    assert isinstance(answer["continuation"], str)
    code, ids = command(capsys, "run", str(out), "--tokens", "464,661", "-n", "8")
    assert code == 0
    assert all(isinstance(token, int) for token in ids["continuation"])
    assert cli.main(["run", str(out), "-p", demo.PROMPT, "-n", "8"]) == 0
    assert capsys.readouterr().out == demo.PROMPT + answer["continuation"] + "\n"


def test_run_samples_the_same_text_for_the_same_seed(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", str(out), "-p", demo.PROMPT, "-n", "8", "--temperature", "1", "--seed"]
    first, second, other = (command(capsys, *words, seed)[1]["continuation"] for seed in ("1", "1", "2"))
    assert first == second != other


def test_run_refuses_more_tokens_than_the_model_has_positions(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = command(capsys, "run", str(out), "-p", demo.PROMPT, "-n", "300")
    assert (code, answer["error"]["code"]) == (2, "E202")


def test_eval_measures_perplexity_on_a_text(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = command(capsys, "eval", str(out), "--text", str(DEMO / "heldout.txt"), "--limit", "2")
    assert code == 0
    assert answer["tokens"] == 2 * 255
    assert 10 < answer["perplexity"] < 100


def test_inspect_of_an_export_tells_what_it_is(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = command(capsys, "inspect", str(out))
    assert code == 0
    assert (answer["packed_count"], answer["total_count"]) == (18, 18)


def test_inspect_and_export_of_a_plain_onnx_file_agree(
    result: tuple[demo.DemoResult, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = result[1] / "fp32" / "model.onnx"  # standard operators only
    options = ["--bits", "2", "--method", "greedy", "--set", "*wpe*=keep"]
    code, planned = command(capsys, "inspect", str(plain), *options)
    assert code == 0
    code, done = command(capsys, "export", str(plain), "-o", str(tmp_path / "out"), *options)
    assert code == 0
    columns = ("name", "rows", "inputs", "bits", "packed_bytes")
    assert [[row[c] for c in columns] for row in planned["matrices"]] == [
        [row[c] for c in columns] for row in done["matrices"]
    ]
    assert done["bytes_after"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("model.onnx*"))


def test_a_base_is_exported_as_it_is_and_takes_no_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    assert command(capsys, "quantize", str(DEMO), "-o", str(base), "--method", "greedy")[0] == 0
    code, answer = command(capsys, "export", str(base), "-o", str(tmp_path / "out"), "--bits", "2")
    assert (code, answer["error"]["code"]) == (2, "E203")
    code, answer = command(capsys, "export", str(base), "-o", str(tmp_path / "out"))
    assert code == 0
    assert (answer["packed"], answer["total"], answer["kind"]) == (18, 18, "decoder")


def test_the_python_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "gpt2").symlink_to(DEMO)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_running_an_export_imports_no_torch(out: Path) -> None:
    import subprocess

    code = (
        "import sys; from bcq.cli import main; "
        f"assert main(['run', {str(out)!r}, '-p', 'The', '-n', '2']) == 0; "
        "sys.exit(len({'torch', 'transformers', 'onnx', 'onnx_ir'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
