# SPDX-License-Identifier: Apache-2.0
"""Where the time of a decode step goes, by operator, with and without the passes on small nodes and fusion.

    python tools/decode_shares.py demo gpt2-medium --threads 1 2 > docs/benchmarks/decode.md

Each model is quantized once and exported three times: `plain` (every product its own operator, the other
nodes as the exporter left them), `tidy` (without the small nodes that change nothing), `fused` (products of
the same activations in one operator, too). A step is one token after a past of fixed length. Variants take
turns in every round; figures are medians over the rounds. Shares come from onnxruntime's profiler, in rounds
of their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray

import bcq
from bcq import passes
from bcq.base import QuantizedBase
from bcq.core import Core
from bcq.frontends import hf
from bcq.report import table
from bcq.runtime import default_options
from bcq.write import write_model

PIPELINES = {"plain": passes.PLAIN, "tidy": passes.UNFUSED, "fused": passes.PIPELINE}
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-medium": ("GPT2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "llama-135m": (
        "Llama",
        {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
         "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
         "max_position_embeddings": 2048},
    ),
    "llama-1b": (
        "Llama",
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True, "head_dim": 64,
         "max_position_embeddings": 2048},
    ),
}  # fmt: skip
_CLASSES = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}
LISTED = 10  # operator types that a table shows
Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Variant:
    """One export of a model.

    Attributes:
        name: which passes it went through.
        folder: where it lies.
        nodes: nodes of its graph by type.
    """

    name: str
    folder: Path
    nodes: Counter[str]


def main() -> None:
    """Prints a page of Markdown."""
    arguments = parse()
    print(f"# Where a decode step's time goes\n\n{head(arguments)}")
    for name in arguments.models:
        with tempfile.TemporaryDirectory(prefix="decode-shares-", dir=arguments.folder) as folder:
            variants = list(exports(name, arguments.bits, Path(folder)))
            print(f"\n## {name}, {arguments.bits} bits\n\n{node_table(variants)}", flush=True)
            for threads in arguments.threads:
                print(f"\n{speed_table(variants, threads, arguments)}", flush=True)
                print(f"\n{share_table(variants, threads, arguments)}", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", choices=["demo", *RANDOM])
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--past", type=int, default=64, help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one variant in one round")
    parser.add_argument("--folder", type=Path, help="where temporary models are made")
    return parser.parse_args()


def head(arguments: argparse.Namespace) -> str:
    """How the page was made."""
    core = Core.load()
    kernel = core.select_matmul(bits=arguments.bits, flags=core.flags())
    return f"""\
Made by `tools/decode_shares.py {" ".join(arguments.models)}`: onnxruntime {onnxruntime.__version__}, kernel
{kernel}, group size 128, a past of {arguments.past} tokens, medians of {arguments.rounds} rounds in which
the variants take turns. `plain`: one operator a matrix, the other nodes as the exporter left them; `tidy`:
without small nodes that change nothing; `fused`: products of the same activations in one operator, too.
Processor time is that of the one thread; it counts no waiting for other programs. With the profiler on, small
operators take longer."""


def exports(name: str, bits: int, folder: Path) -> Iterator[Variant]:
    """The variants of a model, all from one quantized base."""
    source = (
        Path(str(files("bcq") / "demo_model")) if name == "demo" else random_model(name, folder / "model")
    )
    base = bcq.quantize(source, folder / "base", bits=bits, method="greedy")
    for variant, pipeline in PIPELINES.items():
        (folder / variant).mkdir()
        yield Variant(variant, folder / variant, export(base, pipeline, folder / variant))


def export(base: QuantizedBase, pipeline: passes.Pipeline, folder: Path) -> Counter[str]:
    """Writes the graph of a base; its nodes by type."""
    model = hf.skeleton(base).model
    passes.run(model, passes.FromBase(base), pipeline=pipeline)
    write_model(model, folder / "model.onnx")
    return Counter(node.op_type for node in model.graph)


def random_model(name: str, folder: Path) -> Path:
    """A model folder with seeded random weights."""
    family, sizes = RANDOM[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes)
    getattr(transformers, _CLASSES[family])(config).half().save_pretrained(folder)
    return folder


def opened(variant: Variant, threads: int, profile: Path | None = None) -> Any:
    """A session on so many threads."""
    options = default_options()
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return bcq.session(variant.folder, options)


def step_feeds(session: Any, past: int) -> Feeds:
    """One new token after `past` others."""
    feeds: Feeds = {}
    random = np.random.default_rng(0)
    for value in session.get_inputs():
        if "past" in value.name:
            shape = (1, value.shape[1], past, value.shape[3])
            feeds[value.name] = random.standard_normal(shape).astype(np.float32)
        elif "mask" in value.name:
            feeds[value.name] = np.ones((1, past + 1), np.int64)
        else:
            feeds[value.name] = np.full((1, 1), past if "position" in value.name else 7, np.int64)
    return feeds


def speed_table(variants: Sequence[Variant], threads: int, arguments: argparse.Namespace) -> str:
    """Steps per second, the variants in turns."""
    sessions = [opened(variant, threads) for variant in variants]
    times = in_turns(sessions, arguments)
    rows = []
    for variant, found in zip(variants, times, strict=True):
        gain = median(first.cpu / mine.cpu for first, mine in zip(times[0], found, strict=True))
        wall_gain = median(first.wall / mine.wall for first, mine in zip(times[0], found, strict=True))
        cpu = [f"{1e3 * median(time.cpu for time in found):.3f}", f"{gain:.2f}x"] if threads == 1 else []
        wall = median(time.wall for time in found)
        rows.append([variant.name, f"{1e3 * wall:.3f}", f"{1 / wall:.1f}", f"{wall_gain:.2f}x", *cpu])
    header = [f"{threads} thread(s)", "ms a step", "tokens/s", "gain"]
    return table([*header, *(["ms of processor", "gain"] if threads == 1 else [])], rows)


@dataclass(frozen=True)
class Times:
    """Seconds of a step, by the clock and of the calling thread's processor."""

    wall: float
    cpu: float


def in_turns(sessions: Sequence[Any], arguments: argparse.Namespace) -> list[list[Times]]:
    """The median step of every session in every round."""
    feeds = step_feeds(sessions[0], arguments.past)
    found: list[list[Times]] = [[] for _ in sessions]
    for _ in range(arguments.rounds):
        for session, times in zip(sessions, found, strict=True):
            session.run(None, feeds)  # another model was in the cache
            steps = list(timed(session, feeds, arguments.seconds))
            times.append(Times(median(step.wall for step in steps), median(step.cpu for step in steps)))
    return found


def timed(session: Any, feeds: Feeds, seconds: float) -> Iterator[Times]:
    """Single steps, as many as fit, five at least."""
    end, count = time.perf_counter() + seconds, 0
    while count < 5 or time.perf_counter() < end:
        wall, cpu = time.perf_counter(), time.thread_time()
        session.run(None, feeds)
        yield Times(time.perf_counter() - wall, time.thread_time() - cpu)
        count += 1


def share_table(variants: Sequence[Variant], threads: int, arguments: argparse.Namespace) -> str:
    """Share of the operators' time and time a step, by type."""
    sessions = [opened(variant, threads, variant.folder / "profile") for variant in variants]
    in_turns(sessions, arguments)
    found = [by_type(json.loads(Path(session.end_profiling()).read_text())) for session in sessions]
    types = sorted({op for times in found for op in times}, key=lambda op: -found[0][op])
    most = sorted(types, key=lambda op: -max(times[op] for times in found))[:LISTED]
    rows = [[op, *(_share(times[op], times) for times in found)] for op in types if op in most]
    rest = [sum(time for op, time in times.items() if op not in most) for times in found]
    rows.append(["others", *(_share(other, times) for other, times in zip(rest, found, strict=True))])
    rows.append(["all operators, us a step", *(f"{sum(times.values()):.0f}" for times in found)])
    return table([f"{threads} thread(s), profiler on", *(variant.name for variant in variants)], rows)


def _share(part: float, times: Counter[str]) -> str:
    """A part of a sum and its size."""
    return f"{part / sum(times.values()):.1%} ({part:.0f} us)"


def by_type(events: Sequence[dict[str, Any]]) -> Counter[str]:
    """Microseconds a step of each operator type: the sum over its nodes of their medians."""
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
    shares: Counter[str] = Counter()
    for (op, _), durations in times.items():
        shares[op] += median(durations)  # type: ignore[assignment]
    return shares


def node_table(variants: Sequence[Variant]) -> str:
    """Nodes of each variant, the most frequent types by name."""
    most = [op for op, _ in variants[0].nodes.most_common(8)]
    rows = [
        [variant.name, str(sum(variant.nodes.values())), *(str(variant.nodes[op]) for op in most)]
        for variant in variants
    ]
    return table(["graph", "nodes", *most], rows)


if __name__ == "__main__":
    main()
