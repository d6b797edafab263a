# SPDX-License-Identifier: Apache-2.0
"""What each fusion of the graph does for a decode step: times in turns, and where they go, by operator.

    python tools/decode_shares.py gpt2-medium llama-135m --threads 1 2

Each model is quantized once and exported three times: `plain` (every product its own operator, attention
as the exporter left it), `products` (products of the same activations in one operator), `attention` (it
in one operator a layer with a shared buffer, too). Variants generate the same tokens in turns; figures are
medians over the rounds. Shares come from onnxruntime's profiler, in runs of their own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import bcq
from bcq.bench.end_to_end import profile
from bcq.bench.end_to_end.engine_bcq import open_model
from bcq.bench.end_to_end.measure import prompt_of
from bcq.bench.end_to_end.shapes import SHAPES, random_model
from bcq.export import export
from bcq.report import table

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"attention": "plain", "fuse": False},
    "products": {"attention": "plain"},
    "attention": {"attention": "fused"},
}


def main() -> None:
    """Prints Markdown."""
    arguments = parse()
    for name in arguments.models:
        with tempfile.TemporaryDirectory(prefix="decode-shares-", dir=arguments.folder) as folder:
            exports = list(exported(name, arguments.bits, Path(folder)))
            for threads in arguments.threads:
                print(f"\n## {name}, {arguments.bits} bits, {threads} thread(s)\n")
                print(speed_table(exports, threads, arguments), flush=True)
                print(f"\n{profile.to_table(list(shares(exports, threads, arguments)))}", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", choices=["demo", *SHAPES])
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--past", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="steps of one variant in one round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where temporary models are made")
    return parser.parse_args()


def exported(name: str, bits: int, folder: Path) -> Iterator[Path]:
    """The variants of a model, all from one quantized base."""
    demo = Path(str(files("bcq") / "demo_model"))
    source = demo if name == "demo" else random_model(name, folder / "model")
    base = bcq.quantize(source, folder / "base", bits=bits, method="greedy")
    for variant, options in VARIANTS.items():
        yield export(base, folder / variant, **options).folder


def speed_table(exports: Sequence[Path], threads: int, arguments: argparse.Namespace) -> str:
    """Steps a second, the variants in turns."""
    models = [open_model(folder, threads) for folder in exports]
    prompt = prompt_of(exports[0], arguments.past)
    times: list[list[float]] = [[] for _ in models]
    for _ in range(arguments.rounds):
        for model, found in zip(models, times, strict=True):
            found.append(step_seconds(model, prompt, arguments.tokens))
    rows = []
    for folder, found in zip(exports, times, strict=True):
        gain = median(first / mine for first, mine in zip(times[0], found, strict=True))
        rows.append([folder.name, f"{1e3 * median(found):.3f}", f"{1 / median(found):.1f}", f"{gain:.2f}x"])
    return table(["", "ms a step", "tokens/s", "gain"], rows)


def step_seconds(model: Any, prompt: list[int], tokens: int) -> float:
    """Of one token after the first, on average."""
    stream = model.stream(prompt, tokens + 1)
    next(stream)
    began = time.perf_counter()
    count = sum(1 for _ in islice(stream, tokens))
    return (time.perf_counter() - began) / count


def shares(exports: Sequence[Path], threads: int, arguments: argparse.Namespace) -> Iterator[profile.Shares]:
    """Of each variant."""
    prompt = prompt_of(exports[0], arguments.past)
    for folder in exports:
        yield profile.profile_export(folder, threads, prompt, arguments.tokens)


if __name__ == "__main__":
    main()
