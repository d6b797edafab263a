# SPDX-License-Identifier: Apache-2.0
"""transformers loads, trains and saves a quantized base through ``quant_method: "bcq"``."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import bcq
import bcq.nn
import tiny_models
from bcq.errors import BcqError
from bcq.files.base import QuantizedBase
from bcq.frontends.hf import read_dense
from bcq.frontends.names import stored_names
from bcq.nn.quantizer import BcqConfig, BcqQuantizer

DEMO = Path(str(files("bcq") / "demo_model"))
KINDS = ["gpt2", "opt", "llama", "bert"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Dense model and base of each kind; group size 32, 2 bits, with offsets."""
    root = tmp_path_factory.mktemp("models")
    made = {}
    for kind in KINDS:
        dense = tiny_models.save(kind, root / kind)
        bcq.quantize(dense, root / f"{kind}-base", bits=2, group_size=32, offset=True, method="greedy")
        made[kind] = (dense, root / f"{kind}-base")
    return made


def load(folder: Path, kind: str = "gpt2", dtype: Any = torch.float32) -> Any:
    auto = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype, local_files_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_base_computes_what_the_dequantized_model_computes(
    folders: dict[str, tuple[Path, Path]], kind: str
) -> None:
    dense_folder, folder = folders[kind]
    base, packed, dense = QuantizedBase.open(folder), load(folder, kind), load(dense_folder, kind)
    names = stored_names(dense, {*base.names(), *base.dense_names()}, folder)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            parameter.copy_(torch.from_numpy(read_dense(base, names[name]).copy()))
    ids = torch.randint(2, 90, (3, 20), generator=torch.Generator().manual_seed(0))
    got, wanted = packed(ids)[0], dense(ids)[0]
    # 60 tokens take dense products: float32 sums of 64 to 136 terms in another order, through two layers.
    assert torch.linalg.norm(got - wanted) <= 1e-5 * torch.linalg.norm(wanted)
    assert bcq.nn.model_numbers(packed) == sum(p.numel() for p in dense.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_saving_gives_the_same_base_again(
    folders: dict[str, tuple[Path, Path]], kind: str, tmp_path: Path
) -> None:
    before = QuantizedBase.open(folders[kind][1])
    load(folders[kind][1], kind).save_pretrained(tmp_path / "again")
    after = QuantizedBase.open(tmp_path / "again")
    assert after.base_hash == before.base_hash
    assert after.config["quantization_config"] == before.config["quantization_config"]
    for name, matrix in before.matrices.items():
        again = after.find(matrix.name)
        assert again is not None
        assert (again.kind, again.tied, again.transposed) == (matrix.kind, matrix.tied, matrix.transposed)
        for part in matrix.specs():
            place = part.removeprefix(name)
            assert after.checkpoint.raw(again.stored + place) == before.checkpoint.raw(part), part
    assert len(after.checkpoint.names()) == len(before.checkpoint.names())


def test_a_tied_head_is_one_matrix(folders: dict[str, tuple[Path, Path]]) -> None:
    model = load(folders["gpt2"][1])
    assert model.lm_head.weight is model.transformer.wte.weight
    model.tie_weights()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_alpha_1_of_the_linear_layers_is_trained_and_nothing_else(
    folders: dict[str, tuple[Path, Path]],
) -> None:
    model = load(folders["gpt2"][1])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 8
    assert all(name.startswith("transformer.h.") and name.endswith(".alpha_1") for name in trained)
    # 2 layers, rows 192 + 64 + 256 + 64, 64 inputs in groups of 32; the last matrix has 256 inputs
    assert bcq.nn.trained_numbers(model) == 2 * (2 * (192 + 64 + 256) + 8 * 64)


def test_other_parts_are_trained_on_request(folders: dict[str, tuple[Path, Path]]) -> None:
    model = load(folders["opt"][1])
    bcq.nn.train_only(model, ("alpha_1", "offset", "embeddings", "bias", "norm"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "model.decoder.embed_tokens.weight.alpha_1" in trained
    assert "model.decoder.layers.0.fc1.weight.offset" in trained
    assert "model.decoder.layers.0.fc1.bias" in trained
    assert "model.decoder.layers.0.final_layer_norm.bias" in trained
    assert not any(name.endswith("alpha_rest") for name in trained)
    bcq.nn.train_only(model, ("norm",))
    assert all("norm" in name for name, p in model.named_parameters() if p.requires_grad)
    with pytest.raises(BcqError, match="alpha_3") as caught:
        bcq.nn.train_only(model, ("alpha_3",))
    assert caught.value.code == "E202"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_train(folders: dict[str, tuple[Path, Path]], dtype: torch.dtype) -> None:
    exact, half = load(folders["gpt2"][1]), load(folders["gpt2"][1], dtype=dtype)
    ids = torch.arange(2, 62).view(3, 20)
    loss = half(ids, labels=ids).loss
    loss.backward()
    weight = half.transformer.h[0].attn.c_attn.weight
    assert weight.alpha_1.dtype is torch.float32
    assert torch.isfinite(weight.alpha_1.grad).all()
    assert abs(loss.item() - exact(ids, labels=ids).loss.item()) < 0.1  # logits of about 10 in 8 bits


def test_trainer_trains_and_saves_a_base(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate, which Trainer needs, is not installed")
    model, before = load(folders["gpt2"][1]), QuantizedBase.open(folders["gpt2"][1])
    rows: Any = [
        {"input_ids": list(range(i, i + 12)), "labels": list(range(i, i + 12))} for i in range(2, 34)
    ]
    options = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=8, per_device_train_batch_size=8, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no", seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=options, train_dataset=rows)
    first = trainer.evaluate(rows)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(rows)["eval_loss"] < first
    trainer.save_model(str(tmp_path / "tuned"))
    after = QuantizedBase.open(tmp_path / "tuned")
    assert after.base_hash == before.base_hash
    name = "transformer.h.0.attn.c_attn.weight"
    assert (after.packed(name).alpha_1 != before.packed(name).alpha_1).any()
    assert (after.packed(name).alpha_rest == before.packed(name).alpha_rest).all()


def test_generation_runs_on_packed_codes() -> None:
    folder = Path(bcq.quantize(DEMO, bits=3, method="greedy").folder)
    model = load(folder)
    tokens = model.generate(torch.tensor([[5, 9, 77]]), max_new_tokens=5, do_sample=False, use_cache=True)
    again = model.generate(torch.tensor([[5, 9, 77]]), max_new_tokens=5, do_sample=False, use_cache=False)
    assert tokens.tolist() == again.tolist()


def test_a_base_of_another_format_is_refused() -> None:
    with pytest.raises(BcqError, match="format 9") as caught:
        BcqQuantizer(BcqConfig(format_version=9)).validate_environment()
    assert caught.value.code == "E401"


def test_codes_that_were_changed_make_another_base(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    model = load(folders["gpt2"][1])
    model.transformer.wpe.weight.codes.view(torch.int32)[0] ^= 1
    model.save_pretrained(tmp_path / "other")  # another base, and it says so
    assert (
        QuantizedBase.open(tmp_path / "other").base_hash != QuantizedBase.open(folders["gpt2"][1]).base_hash
    )


SCRIPT = """
import sys, torch, transformers, bcq.nn
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
rows = torch.arange(2, 2 + 8 * 10).view(8, 10)
loader = torch.utils.data.DataLoader(rows, batch_size=4 // accelerator.num_processes)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for batch in loader:
    loss = model(batch, labels=batch).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
accelerator.unwrap_model(model).save_pretrained(sys.argv[2], is_main_process=accelerator.is_main_process)
print("processes", accelerator.num_processes)
"""


def test_accelerate_launch_with_two_processes_trains_as_one_does(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    (tmp_path / "script.py").write_text(SCRIPT)
    assert "processes 2" in launch(2, tmp_path, str(folders["gpt2"][1]))
    model = load(folders["gpt2"][1])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for batch in torch.arange(2, 82).view(2, 4, 10):
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    alone = model.transformer.h[0].mlp.c_fc.weight.alpha_1.detach()
    tuned = QuantizedBase.open(tmp_path / "tuned-2").packed("transformer.h.0.mlp.c_fc.weight").alpha_1
    # The mean gradient is summed in another order; two steps of Adam move a factor by at most 0.02.
    assert abs(alone.numpy() - tuned).max() < 1e-3


def launch(count: int, folder: Path, base: str) -> str:
    words = ["--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no"] + (
        ["--multi_gpu", "--main_process_port", "0"] if count > 1 else ["--cpu"]
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", *words]
    command += [str(folder / "script.py"), base, str(folder / f"tuned-{count}")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
