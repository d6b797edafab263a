# SPDX-License-Identifier: Apache-2.0
"""Memory and time of a training step on a random GPT-2: full tuning, LoRA and alpha tuning.

    python tools/alphatuning_cost.py --folder build --width 1024 --layers 12

Each method runs in a process of its own. Memory is the peak of its resident set, less what it held after a
step of a model of no size; time is processor time a step, the median of five, on one thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import bcq
import bcq.nn
from bcq.files.base import QuantizedBase
from bcq.frontends.architectures import architecture_of
from bcq.tuning.load import load_dense, load_packed

METHODS = ("full", "lora", "alpha", "alpha, dense gradient", "all alphas")
WORDS, STEPS = 1024, 5


def resident(name: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def make(folder: Path, width: int, layers: int, bits: int) -> None:
    """A random model and its base, unless they are there."""
    if (folder / "model").is_dir() and (folder / "base").is_dir():
        return
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=256, n_embd=width, n_layer=layers, n_head=width // 64, bos_token_id=0,
        eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).half().save_pretrained(folder / "model")
    bcq.quantize(folder / "model", folder / "base", bits=bits, group_size=128, method="greedy")


def prepared(method: str, folder: Path) -> Any:
    """The model with what the method trains."""
    if method in ("full", "lora"):
        model = load_dense(folder / "model")
        if method == "full":
            return model.requires_grad_(True)
        from peft import LoraConfig, inject_adapter_in_model

        return inject_adapter_in_model(LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True), model)
    base = QuantizedBase.open(folder / "base")
    model = load_packed(base, architecture_of(base.config))
    bcq.nn.train_only(model, ("alpha_1", "alpha_rest") if method == "all alphas" else ("alpha_1",))
    for matrix in bcq.nn.packed_matrices(model).values():
        matrix.rule = bcq.nn.Rule(by_kernel=method != "alpha, dense gradient")
    return model


def measure(method: str, folder: Path, tokens: int) -> dict[str, float]:
    """Peak memory in bytes and seconds a step, in this process."""
    torch.set_num_threads(1)
    for _ in range(2):
        step(small(), torch.ones(8, 8, dtype=torch.long))
    gc.collect()
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of imports: forget it
    model = prepared(method, folder)
    ids = torch.randint(1, WORDS, (tokens // 64, 64), generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(STEPS):
        began = time.process_time()
        step(model, ids)
        times.append(time.process_time() - began)
    return {"peak": resident("VmHWM") - held, "seconds": statistics.median(times)}


def small() -> Any:
    """A model of no size, on which imports and buffers of libraries are paid."""
    config = transformers.GPT2Config(vocab_size=WORDS, n_positions=256, n_embd=64, n_layer=1, n_head=1)
    return transformers.GPT2LMHeadModel(config)


def step(model: Any, ids: torch.Tensor) -> None:
    """One update with an optimizer whose moments are made anew: the first and the largest."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Runs every method and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the random model goes")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=512, help="a step")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder / f"cost-{arguments.width}-{arguments.layers}-{arguments.bits}"
    if arguments.method:
        print(json.dumps(measure(arguments.method, folder, arguments.tokens)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    make(folder, arguments.width, arguments.layers, arguments.bits)
    sizes = [(folder / part / "model.safetensors").stat().st_size for part in ("model", "base")]
    print(f"float32 weights {2 * sizes[0] / 1e6:,.0f} MB, base {sizes[1] / 1e6:,.0f} MB")
    print("| method | peak MB | s a step |\n| ------ | ------: | -------: |")
    for method in METHODS:
        command = [sys.executable, __file__, *sys.argv[1:], "--method", method]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        found = json.loads(done.stdout)
        print(f"| {method} | {found['peak'] / 1e6:,.0f} | {found['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
