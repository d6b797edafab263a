# SPDX-License-Identifier: Apache-2.0
"""LoRA checkpoints: read as PEFT writes them, merged as PEFT merges them, said with frozen codes, gated."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("torch", reason="a base is made with the packages for compiling")

import bcq
from bcq.adapters.adapter import Adapter
from bcq.cli import main
from bcq.errors import BcqError
from bcq.files.base import QuantizedBase
from bcq.files.checkpoint import Checkpoint
from bcq.lora.adapt import adapt, check_retained, project, total_retained
from bcq.lora.checkpoint import Lora, find_name
from bcq.lora.merge import retained_by, write_merged
from bcq.packing import unpack
from tiny_adapters import tiny_base
from tiny_models import save

C_FC = "transformer.h.0.mlp.c_fc"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": True, "bias": "none"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> QuantizedBase:
    return tiny_base(tmp_path_factory.mktemp("base"), offset=True, overrides=("*h.1.mlp.c_proj*=keep",))


def write(folder: Path, tensors: dict[str, Any], **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))
    save_file(
        {f"base_model.model.{name}": array for name, array in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def pair(module: str, inputs: int, outputs: int, size: float = 0.1, rank: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        f"{module}.lora_A.weight": rng.normal(0, size, (rank, inputs)).astype(np.float32),
        f"{module}.lora_B.weight": rng.normal(0, 1, (outputs, rank)).astype(np.float32),
    }


def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(BcqError) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value.code, caught.value.message


@pytest.mark.filterwarnings("ignore")  # of PEFT about transformers, and about what it corrects itself
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_checkpoint_of_peft_is_merged_as_peft_merges_it(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    import torch
    import transformers

    model_folder = save(kind, tmp_path / "model")
    dense = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    modules = {"gpt2": ["c_attn", "c_fc", "wpe"], "llama": ["q_proj", "down_proj", "embed_tokens"]}[kind]
    whole = {"gpt2": ["ln_f"], "llama": ["lm_head"]}[kind]
    config = peft.LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=modules, modules_to_save=whole, bias="all",
        alpha_pattern={modules[1]: 9}, fan_in_fan_out=kind == "gpt2",
    )  # fmt: skip
    wrapped = peft.get_peft_model(dense, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if (parameter.requires_grad and "weight" in name) or "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "lora")
    merged = wrapped.merge_and_unload().state_dict()
    (tmp_path / "merged").mkdir()
    write_merged(model_folder, Lora.open(tmp_path / "lora"), tmp_path / "merged")
    ours = Checkpoint.open(tmp_path / "merged")
    changed = 0
    for name in ours.names():
        expected = merged[name].numpy()
        # Both round B A and its sum with W once or twice: a few times 2^-24 of their size, below 4 here.
        np.testing.assert_allclose(ours.read(name), expected, atol=2e-6)
        changed += not np.array_equal(Checkpoint.open(model_folder).read(name), expected)
    assert changed >= 4


def test_the_whole_of_a_change_in_the_span_of_the_codes_is_retained(base: QuantizedBase) -> None:
    stored = f"{C_FC}.weight"
    weight = unpack(base.packed(stored))
    doubled = replace(weight, alpha=weight.alpha * np.float16(2), offset=weight.offset * np.float16(2))
    solved = project(weight, doubled.dequantize() - weight.dequantize())
    assert solved.alpha_rest is not None
    assert solved.offset is not None
    assert doubled.offset is not None
    np.testing.assert_allclose(solved.alpha_1, doubled.alpha[0], rtol=2e-3)
    np.testing.assert_allclose(solved.alpha_rest, doubled.alpha[1:], rtol=2e-3)
    # The offset is small beside the factors, whose float16 steps (2^-11 of 0.4) it takes up.
    np.testing.assert_allclose(solved.offset, doubled.offset, atol=2e-4)


def test_factors_are_the_least_squares_solution_of_each_group(base: QuantizedBase, tmp_path: Path) -> None:
    """No other factors come closer: a small step along any plane of any group makes the error larger."""
    stored = f"{C_FC}.weight"
    weight = unpack(base.packed(stored))
    delta = np.random.default_rng(0).normal(0, 0.1, (weight.rows, weight.inputs)).astype(np.float32)
    for parts in ("all", "alpha_1"):
        solved = project(weight, delta, parts)
        rest = weight.alpha[1:] if solved.alpha_rest is None else solved.alpha_rest
        offset = weight.offset if solved.offset is None else solved.offset
        alpha = np.concatenate([solved.alpha_1[None], rest])
        target = weight.dequantize() + delta

        def error(alpha: Any, target: Any = target, offset: Any = offset) -> float:
            return float(np.square(replace(weight, alpha=alpha, offset=offset).dequantize() - target).sum())

        for step in (-0.02, 0.02):
            moved = alpha.copy()
            moved[0, 5] += np.float16(step)
            assert error(moved) > error(alpha)


def test_a_lora_becomes_an_adapter_that_runs(base: QuantizedBase, tmp_path: Path) -> None:
    bias = np.full(256, 0.5, np.float32)
    tensors = {
        **pair(C_FC, 64, 256),
        **pair("transformer.h.1.mlp.c_proj", 256, 64),
        f"{C_FC}.base_layer.bias": bias,
    }
    lora = Lora.open(write(tmp_path / "lora", tensors, bias="all"))
    adapter, found = adapt(base, lora, "task")
    adapter.check_fits(base)
    assert [one.name for one in found] == [f"{C_FC}.weight"]
    assert 0 < found[0].retained < 0.2  # 3 of 32 directions of a group: about a tenth of a change without aim
    np.testing.assert_array_equal(adapter.dense[f"{C_FC}.bias"], bias)
    kept = "transformer.h.1.mlp.c_proj.weight"
    exact = base.checkpoint.read(kept) + lora.changes[kept].delta().T
    np.testing.assert_allclose(adapter.dense[kept], exact, rtol=1e-6)
    only = adapt(base, lora, "task", parts="alpha_1")[0]
    assert set(only.alphas[f"{C_FC}.weight"].tensors()) == {"alpha_1"}


def test_too_much_loss_is_refused_unless_it_is_accepted(
    base: QuantizedBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = write(tmp_path / "lora", pair(C_FC, 64, 256))
    command = ["adapt", str(base.folder), "--lora", str(lora), "-o", str(tmp_path / "task")]
    assert main(command) == 5
    assert "error[E503]" in capsys.readouterr().err
    assert not (tmp_path / "task").exists()
    assert main([*command, "--allow-loss", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["retained"] == pytest.approx(told["matrices"][0]["retained"])
    adapter = Adapter.open(tmp_path / "task")
    adapter.check_fits(base)
    assert adapter.name == "task"


def test_the_loss_on_a_held_out_text_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bcq.commands.adapt.WINDOWS", 2)
    demo = Path(str(files("bcq") / "demo_model"))
    base = bcq.quantize(demo, tmp_path / "base", bits=2, method="greedy")
    lora = write(tmp_path / "lora", pair("transformer.h.0.mlp.c_fc", 128, 384, size=1.0))
    words = ["adapt", str(base.folder), "--lora", str(lora), "-o", str(tmp_path / "task"), "--allow-loss"]
    assert main([*words, "--text", str(demo / "heldout.txt"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["perplexity"]
    assert 1 < told["base"] < told["adapter"]  # a large change without aim does harm


def test_a_merged_model_that_is_quantized_anew_retains_the_change(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    model = base.folder.parent / "model"
    lora = Lora.open(write(tmp_path / "lora", pair(C_FC, 64, 256)))
    (tmp_path / "merged").mkdir()
    write_merged(model, lora, tmp_path / "merged")
    anew = bcq.quantize(tmp_path / "merged", bits=3, group_size=32)
    found = retained_by(anew, model, lora)
    # Rounding errors do not follow the change: <E, D> / <D, D> is about |E| / (|D| sqrt(16384)), below 0.1.
    assert total_retained(found) == pytest.approx(1, abs=0.1)
    check_retained(found)


def test_export_merges_into_a_dense_model_and_bakes_into_a_base(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    model, lora = base.folder.parent / "model", write(tmp_path / "lora", pair(C_FC, 64, 256, size=0.5))
    bcq.export(model, tmp_path / "dense", lora=lora, bits=2, group_size=32)
    assert code_of(lambda: bcq.export(base, tmp_path / "baked", lora=lora))[0] == "E503"
    assert not (tmp_path / "baked").exists()
    bcq.export(base, tmp_path / "baked", lora=lora, allow_loss=True)
    bcq.export(base, tmp_path / "plain")
    outputs = [bcq.load(tmp_path / name).generate([3, 4, 5], 12) for name in ("dense", "baked", "plain")]
    assert len({tuple(output) for output in outputs}) == 3
    assert not list(tmp_path.glob("**/.merged-*"))


def test_quantize_merges_first_and_leaves_nothing_else(tmp_path: Path) -> None:
    model = save("gpt2", tmp_path / "model")
    lora = write(tmp_path / "lora", pair(C_FC, 64, 256))
    words = ["quantize", str(model), "--lora", str(lora), "--bits", "3", "--group-size", "32", "--quiet"]
    assert main([*words, "-o", str(tmp_path / "base")]) == 0
    assert main([*words, "-o", str(tmp_path / "again"), "--resume"]) == 0
    (tmp_path / "merged" / "model").mkdir(parents=True)
    write_merged(model, Lora.open(lora), tmp_path / "merged" / "model")
    direct = bcq.quantize(tmp_path / "merged" / "model", bits=3, group_size=32)
    for name in ("base", "again"):
        assert QuantizedBase.open(tmp_path / name).base_hash == direct.base_hash
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert files == {path.name for path in direct.folder.iterdir()}
        command = json.loads((tmp_path / name / "MANIFEST.json").read_text())["command"]
        assert command[:4] == ["bcq", "quantize", "model", "--lora"]
        assert command[4] == "lora"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "lora", "base", "again", "merged"}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"peft_type": "IA3"}, "E102"),
        ({"lora_alpha": None}, "E102"),
        ({"lora_alpha": "8"}, "E102"),
        ({"alpha_pattern": {"c_fc": "8"}}, "E102"),
        ({"alpha_pattern": {"(a+)+$": 8}}, "E401"),
        ({"use_dora": True}, "E401"),
        ({"lora_bias": True}, "E401"),
        ({"init_lora_weights": "pissa"}, "E401"),
        ({"target_parameters": ["experts"]}, "E401"),
        ({"bias": "some"}, "E401"),
    ],
)
def test_what_is_more_or_less_than_a_lora_is_refused(
    fields: dict[str, Any], code: str, tmp_path: Path
) -> None:
    assert code_of(lambda: Lora.open(write(tmp_path / "lora", pair(C_FC, 64, 256), **fields)))[0] == code


def sides(a: Any, b: Any) -> dict[str, Any]:
    return {"a.lora_A.weight": a, "a.lora_B.weight": b}


ONES = np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ({"a.lora_A.weight": ONES}, "E107"),
        (sides(ONES, ONES[:, :3]), "E302"),
        (sides(ONES * np.float32(np.nan), ONES), "E106"),
        (sides(ONES.astype(np.int32), ONES), "E102"),
        ({"a.lora_magnitude_vector.weight": ONES}, "E401"),
        ({}, "E304"),
    ],
)
def test_tensors_that_are_no_lora_are_refused(tensors: dict[str, Any], code: str, tmp_path: Path) -> None:
    assert code_of(lambda: Lora.open(write(tmp_path / "lora", tensors)))[0] == code


def test_a_lora_of_another_model_is_refused(base: QuantizedBase, tmp_path: Path) -> None:
    model = base.folder.parent / "model"
    (tmp_path / "merged").mkdir()
    for tensors in (pair("transformer.h.9.mlp.c_fc", 64, 256), pair(C_FC, 65, 256), pair(C_FC, 64, 10**6)):
        lora = Lora.open(write(tmp_path / "lora", tensors))
        assert code_of(lambda lora=lora: adapt(base, lora, "task"))[0] == "E302"
        assert code_of(lambda lora=lora: write_merged(model, lora, tmp_path / "merged"))[0] == "E302"
    whole = {"transformer.wte.weight": np.ones((100, 64), np.float32)}
    lora = Lora.open(write(tmp_path / "lora", whole))
    assert "replaces 'transformer.wte.weight' as a whole" in code_of(lambda: adapt(base, lora, "task"))[1]


def test_names_are_found_with_more_or_fewer_leading_parts() -> None:
    names = {"h.0.c_fc.weight", "h.10.c_fc.weight"}
    assert find_name("transformer.h.0.c_fc.weight", names) == "h.0.c_fc.weight"
    assert find_name("c_fc.weight", names) is None  # of two, none is meant
    assert find_name("h.1.c_fc.weight", names) is None
