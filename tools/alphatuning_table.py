# SPDX-License-Identifier: Apache-2.0
"""AlphaTuning's table at the scale of a small GPT-2: E2E, BLEU and loss by method, one cell at a time.

    python tools/alphatuning_table.py --model models/gpt2-tiny --data data/e2e --work cache --steps 250
    python tools/alphatuning_table.py ... --cells 'alpha q=2 g=row lr=0.003' 'lora r=8'  # any others
    python tools/alphatuning_table.py ... --no-compute                                   # what the cache has

A cell is a method and its settings: ``base``, ``full``, ``lora`` or ``alpha``, with ``lr``, ``steps`` and
``batch``. ``alpha`` has ``q``, ``g`` (a number, or ``row``), ``train`` (parts joined by +), ``emb`` (bits
of embeddings, or ``keep``) and ``scale`` (1: gradients divided by g). ``full`` and ``lora`` may be
quantized afterwards: ``then=3 g=128``. Every cell starts from the same model, sees the same examples in the
same order, and is evaluated as a dense model with the same values: greedy continuations of inputs of the
official test, sacrebleu against all references of each, both sides in the spelling of the training data;
and the loss of each input's first reference in nats a token. What is finished stays in the cache, and a
cell that was stopped goes on from its checkpoint.

The folder of data holds train.jsonl.xz, with mr and ref a line, and test.jsonl.xz, with mr and refs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bcq
import bcq.nn
from bcq.adapters.adapter import Adapter
from bcq.bcq import ceil_div
from bcq.files.atomic import AtomicFolder
from bcq.files.base import QuantizedBase
from bcq.files.manifest import write_manifest
from bcq.frontends.architectures import architecture_of
from bcq.frontends.hf import read_dense
from bcq.generation.text import open_tokenizer
from bcq.matrices.plan import QuantizeOptions
from bcq.packing import unpack
from bcq.progress import SILENT
from bcq.quantize import plan
from bcq.tuning.data import Example
from bcq.tuning.language import LanguageTask
from bcq.tuning.load import load_dense, load_packed
from bcq.tuning.options import TuneOptions
from bcq.tuning.train import train
from bcq.tuning.tune import adapter_of

END, CONTEXT, NEW_TOKENS, GENERATE_BATCH = 0, 256, 64, 63
DEFAULTS = {
    "lr": "0.01", "steps": "250", "batch": "8", "q": "3", "g": "row", "train": "alpha_1", "emb": "keep",
    "scale": "1", "r": "4", "then": "", "method": "multistart", "offset": "0",
}  # fmt: skip
RATES = {"full": "0.001", "lora": "0.01", "alpha": "0.01", "base": "0"}
TABLE = [
    "base",
    "full",
    *(f"full then={q} g=128" for q in (1, 2, 3, 4)),
    "lora",
    *(f"lora then={q} g=128" for q in (1, 2, 3, 4)),
    *(f"alpha q={q} g=row" for q in (1, 2, 3, 4)),
    *(f"alpha q={q} g=128" for q in (1, 2, 3, 4)),
]
SPACED = re.compile(r"\s*([,;:!?£-]|(?<!\d)\.|\.(?!\d))\s*")


@dataclass(frozen=True)
class Cell:
    """One method with its settings."""

    method: str
    settings: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str, steps: int) -> Cell:
        """Reads ``alpha q=2 g=row``."""
        method, *pairs = text.split()
        if method not in RATES:
            sys.exit(f"{text!r}: the method is one of {', '.join(RATES)}")
        chosen = {**DEFAULTS, "lr": RATES[method], "steps": str(steps)}
        for pair in pairs:
            name, _, value = pair.partition("=")
            if name not in DEFAULTS:
                sys.exit(f"{text!r}: settings are {', '.join(DEFAULTS)}")
            chosen[name] = value
        return cls(method, tuple(sorted(chosen.items())))

    def __getitem__(self, name: str) -> str:
        return dict(self.settings)[name]

    @property
    def name(self) -> str:
        """Settings that matter for the method and differ from the defaults, in words."""
        rate = RATES[self.method]
        plain = {**DEFAULTS, "lr": rate}
        return " ".join([self.method, *(f"{k}={v}" for k, v in self.settings if v != plain[k])])

    def options(self, seed: int) -> TuneOptions:
        """For the training loop."""
        return TuneOptions(
            steps=int(self["steps"]), batch_size=int(self["batch"]), learning_rate=float(self["lr"]),
            train=tuple(self["train"].split("+")), group_scaling=self["scale"] == "1", seed=seed,
            checkpoint_every=25,
        )  # fmt: skip


def spaced(text: str) -> str:
    """The spelling of the training data: punctuation, pounds and hyphens stand alone."""
    return " ".join(SPACED.sub(r" \1 ", re.sub(r"'(\w)", r" '\1", text)).split())


def spaced_mr(text: str) -> str:
    """The same for the inputs, whose commas and brackets stay: ``£20-25`` is written ``£ 20 - 25``."""
    return re.sub(r"(\d)-(\d)", r"\1 - \2", re.sub(r"£(\d)", r"£ \1", text))


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of an xz-compressed jsonl file."""
    with lzma.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


class Bench:
    """Data, tokenizer and cache of a run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model, self.work = arguments.model, arguments.work
        self.inputs, self.redo = arguments.inputs, arguments.redo
        self.tokenizer = open_tokenizer(self.model)
        self.train = read(arguments.data / "train.jsonl.xz")
        tests = read(arguments.data / "test.jsonl.xz")
        chosen = [tests[i * len(tests) // self.inputs] for i in range(min(self.inputs, len(tests)))]
        self.tests = [(spaced_mr(test["mr"]), [spaced(ref) for ref in test["refs"]]) for test in chosen]
        for part in ("cells", "bases", "models", "adapters"):
            (self.work / part).mkdir(parents=True, exist_ok=True)

    def result(self, cell: Cell, seed: int, compute: bool = True) -> dict[str, Any] | None:
        """A cell's figures, from the cache or computed."""
        file = self.work / "cells" / f"{self._key(cell, seed)}.json"
        if file.is_file() and not self.redo:
            found: dict[str, Any] = json.loads(file.read_text())
            return found
        if not compute:
            return None
        figures = self._compute(cell, seed)
        said = {
            "cell": cell.name,
            "seed": seed,
            "inputs": len(self.tests),
            "model": self.model.name,
            **figures,
        }
        file.write_text(json.dumps(said, indent=1) + "\n")
        return said

    def _key(self, cell: Cell, seed: int) -> str:
        said = json.dumps([self.model.name, cell.method, cell.settings, seed, self.inputs])
        return f"{cell.method}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"

    def _compute(self, cell: Cell, seed: int) -> dict[str, Any]:
        began = time.monotonic()
        model, figures = self._trained(cell, seed)
        figures["train_seconds"] = round(time.monotonic() - began, 1)
        task = LanguageTask(self.tokenizer, END, CONTEXT, TuneOptions(), [])
        firsts = [Example(mr, (refs[0],)) for mr, refs in self.tests]
        figures["nll"] = task.evaluate(model, firsts)["nll"]
        figures["bleu"] = self._bleu(model, task)
        figures["seconds"] = round(time.monotonic() - began, 1)
        return figures

    def _trained(self, cell: Cell, seed: int) -> tuple[Any, dict[str, Any]]:
        """A dense model with the values that the method ends with, and its numbers and bytes."""
        dense = load_dense(self.model)
        numbers = sum(p.numel() for p in dense.parameters())
        if cell.method == "base":
            return dense, {"trained": 0, "task_bytes": 0, "file_bytes": 2 * numbers}
        if cell.method == "alpha":
            return self._alpha(cell, seed, dense)
        folder = self._dense_tuned(cell, seed, dense)
        count = int((folder / "trained").read_text())
        figures = {"trained": count, "task_bytes": 2 * count, "file_bytes": 2 * numbers}
        if cell["then"]:
            base = bcq.quantize(folder, **_quantization(cell, cell["then"]))
            size = (base.folder / "model.safetensors").stat().st_size
            figures |= {"task_bytes": size, "file_bytes": size}
            return with_values_of(load_dense(folder), base), figures
        return load_dense(folder), figures

    def _alpha(self, cell: Cell, seed: int, dense: Any) -> tuple[Any, dict[str, Any]]:
        base = self._base(cell)
        model = load_packed(base, architecture_of(base.config))
        bcq.nn.train_only(model, cell["train"].split("+"))
        for matrix in bcq.nn.packed_matrices(model).values():
            matrix.rule = bcq.nn.Rule(scaled=cell["scale"] == "1")
        count = bcq.nn.trained_numbers(model)
        folder = self.work / "adapters" / self._key(cell, seed)
        if not folder.is_dir():
            self._train(cell, seed, model)
            adapter_of(model, base, "e2e", {"cell": cell.name}).save(folder)
        size = (base.folder / "model.safetensors").stat().st_size
        figures = {"trained": count, "task_bytes": 2 * count, "file_bytes": size}
        return with_values_of(dense, base, Adapter.open(folder)), figures

    def _base(self, cell: Cell) -> QuantizedBase:
        options = _quantization(cell, cell["q"])
        name = "-".join([self.model.name, *(cell[k] for k in ("q", "g", "emb", "method", "offset"))])
        folder = self.work / "bases" / name
        return QuantizedBase.open(folder) if folder.is_dir() else bcq.quantize(self.model, folder, **options)

    def _dense_tuned(self, cell: Cell, seed: int, model: Any) -> Path:
        """The folder of a fully tuned, or LoRA-tuned and merged, model; trained when it is not there."""
        plain = Cell(
            cell.method, tuple((k, DEFAULTS[k] if k in ("then", "g") else v) for k, v in cell.settings)
        )
        folder: Path = self.work / "models" / self._key(plain, seed)
        if folder.is_dir():
            return folder
        model.requires_grad_(True)
        if cell.method == "lora":
            model = with_lora(model, int(cell["r"]))
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._train(plain, seed, model)
        if cell.method == "lora":
            merge_lora(model)
        with AtomicFolder(folder) as partial:
            model.half().save_pretrained(partial)  # as the folder that it came from
            (partial / "trained").write_text(str(count))
            write_manifest(partial, ["alphatuning_table"], seed)
        return folder

    def _train(self, cell: Cell, seed: int, model: Any) -> None:
        options, chosen = cell.options(seed), random.Random(seed)
        rows = chosen.sample(self.train, min(len(self.train), int(cell["steps"]) * int(cell["batch"])))
        examples = [Example(row["mr"], (row["ref"],)) for row in rows]
        task = LanguageTask(self.tokenizer, END, CONTEXT, options, examples)
        key = self._key(cell, seed)
        checkpoint = self.work / f"{key}.safetensors"
        train(model, task, options, SILENT, checkpoint, key, resume=True)
        checkpoint.unlink(missing_ok=True)

    @torch.no_grad()
    def _bleu(self, model: Any, task: LanguageTask) -> float:
        import sacrebleu

        said = []
        for start in range(0, len(self.tests), GENERATE_BATCH):
            prompts = [task.prompt(mr) for mr, _ in self.tests[start : start + GENERATE_BATCH]]
            said += continuations(model, prompts, self.tokenizer)
        most = max(len(refs) for _, refs in self.tests)
        columns: Any = [[refs[i] if i < len(refs) else None for _, refs in self.tests] for i in range(most)]
        return float(sacrebleu.corpus_bleu(said, columns, force=True).score)


def continuations(model: Any, prompts: list[list[int]], tokenizer: Any) -> list[str]:
    """Greedy continuations of token ids up to the end token."""
    width = max(map(len, prompts))
    ids = torch.tensor([[END] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    found = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=END,
    )
    rows = [row[width:].tolist() for row in found]
    return [tokenizer.decode(row[: row.index(END)] if END in row else row).strip() for row in rows]


def with_lora(model: Any, rank: int) -> Any:
    """LoRA on the attention's inputs, as the LoRA paper has it for GPT-2; everything else is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    config = LoraConfig(
        r=rank, lora_alpha=32, lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True
    )
    return inject_adapter_in_model(config, model)


def merge_lora(model: Any) -> None:
    """Adds the low-rank parts to the weights and takes the wrappers away, in place."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "base_layer"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base_layer)


def with_values_of(dense: Any, base: QuantizedBase, adapter: Adapter | None = None) -> Any:
    """A dense model with the dequantized values of a base, and of an adapter on it."""
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            matrix = base.find(name)
            values = read_dense(base, name)
            if adapter is not None and matrix is not None and matrix.stored in adapter.alphas:
                tuned = unpack(adapter.alphas[matrix.stored].applied(base.packed(name))).dequantize()
                values = tuned.T if matrix.transposed else tuned
            if adapter is not None and name in adapter.dense:
                values = np.asarray(adapter.dense[name], np.float32)
            parameter.copy_(torch.from_numpy(np.array(values)))
    return dense


def _quantization(cell: Cell, bits: str) -> dict[str, Any]:
    group = 0 if cell["g"] == "row" else int(cell["g"])
    kept = cell["emb"] == "keep"
    overrides = () if kept else (f"wte={cell['emb']}", f"wpe={cell['emb']}")
    return {
        "bits": int(bits), "group_size": group, "method": cell["method"], "embeddings": not kept,
        "overrides": overrides, "offset": cell["offset"] == "1",
    }  # fmt: skip


def packed_size(model: Path, bits: int, group: int, embedding_bits: int) -> int:
    """Bytes of a base with packed embeddings, without making it."""
    overrides = (f"wte={embedding_bits}", f"wpe={embedding_bits}")
    planned = plan(model, QuantizeOptions(bits=bits, group_size=group, overrides=overrides))
    dense = sum(p.numel() for p in load_dense(model).parameters() if p.ndim == 1)
    return int(sum(matrix.packed_bytes for matrix in planned) + 2 * dense)


def gpt2_medium() -> list[str]:
    """Sizes of AlphaTuning on GPT-2 M (355 M parameters), computed from its shapes: g = K, 3 bits."""
    width, layers, words, places = 1024, 24, 50257, 1024
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    rows = layers * sum(n for n, _ in shapes)
    linear = layers * sum(n * k for n, k in shapes)
    vectors = layers * (3 * width + width + 4 * width + width + 4 * width) + 2 * width
    numbers = linear + (words + places) * width + vectors
    packed = linear * 3 / 8 + rows * 3 * 2
    tables = (words + places) * width * 3 / 8 + (ceil_div(words, 16) * 16 + places) * 3 * 2
    file = packed + tables + 2 * vectors
    return [
        f"GPT-2 M, 3 bits row-wise, computed from its shapes: {numbers:,} numbers, alpha_1 of the linear"
        f" layers {rows:,} ({numbers / rows:,.0f}x fewer), {2 * rows / 1e6:.2f} MB a task in float16;"
        f" embeddings and head packed at 3 bits: {file / 1e6:.0f} MB, {4 * numbers / file:.1f}x smaller than"
        f" float32, {2 * numbers / file:.1f}x than float16.",
    ]


def row(results: list[dict[str, Any]], numbers: int) -> str:
    """One line of the table: means over seeds, and the largest distance from them."""
    bleu = [r["bleu"] for r in results]
    first, size = results[0], results[0]["file_bytes"]
    spread = f" ±{max(abs(b - statistics.fmean(bleu)) for b in bleu):.1f}" if len(bleu) > 1 else ""
    fewer = f"{numbers / first['trained']:,.0f}x" if first["trained"] else "-"
    return (
        f"| {first['cell']} | {len(results)} | {first['trained']:,} | {fewer} |"
        f" {first['task_bytes'] / 1e3:,.0f} | {size / 1e6:.2f} | {4 * numbers / size:.1f}x |"
        f" {2 * numbers / size:.1f}x | {statistics.fmean(r['nll'] for r in results):.3f} |"
        f" {statistics.fmean(bleu):.1f}{spread} |"
    )


HEAD = """\
| cell | seeds | trained | fewer | KB a task | file MB | vs fp32 | vs fp16 | test NLL | BLEU |
| ---- | ----: | ------: | ----: | --------: | ------: | ------: | ------: | -------: | ---: |"""


def main(words: Sequence[str] | None = None) -> None:
    """Computes the cells that are missing and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a dense GPT-2")
    parser.add_argument("--data", type=Path, required=True, help="folder of the E2E files")
    parser.add_argument("--work", type=Path, required=True, help="cache; a run that was stopped goes on here")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--inputs", type=int, default=630, help="inputs of the test, evenly spread over it")
    parser.add_argument("--cells", nargs="+", default=TABLE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--redo", action="store_true", help="ignore the cache")
    parser.add_argument("--no-compute", action="store_true", help="print what the cache has")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no cell after so long")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    bench, began = Bench(arguments), time.monotonic()
    numbers = sum(p.numel() for p in load_dense(arguments.model).parameters())
    rows = []
    for text in arguments.cells:
        cell, results = Cell.parse(text, arguments.steps), []
        for seed in arguments.seeds:
            late = time.monotonic() - began > 60 * arguments.minutes
            found = bench.result(cell, seed, compute=not (arguments.no_compute or late))
            if found is not None:
                results.append(found)
        if results:
            rows.append(row(results, numbers))
            print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join([HEAD, *rows]))
    for bits, group in ((3, 0), (3, 128), (2, 0)):
        size = packed_size(arguments.model, bits, group, bits)
        print(
            f"{bits} bits, g={group or 'row'}, embeddings too: {size / 1e6:.2f} MB, {4 * numbers / size:.1f}x"
        )
    print("\n".join(gpt2_medium()))


if __name__ == "__main__":
    main()
