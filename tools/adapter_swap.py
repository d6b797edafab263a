# SPDX-License-Identifier: Apache-2.0
"""One session, four tasks, swapped per request: added memory, time of a swap, equality with own models.

Run: python tools/adapter_swap.py [--write docs/benchmarks/adapters.md] [--model MODEL]

The default model is a GPT-2 of the smallest published size with seeded random weights, at 3 bits, row-wise.
Each way of serving runs in a process of its own. Exits with 1 when any bit differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TASKS = ("e2e", "webnlg", "dart", "samsum")
SIZES = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 256, "vocab_size": 8192}
OPTIONS: dict[str, Any] = {"bits": 3, "group_size": 0, "method": "greedy"}
PROMPT = list(range(100, 132))
NEW = 8  # tokens of a request
STEPS = 60  # timed decode steps of each kind
ROWS = 8  # of a batch
KB, MB = 1e3, 1e6


def main() -> int:
    """Prepares, measures each way in a process of its own, writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="decoder folder; a seeded random one when left out")
    parser.add_argument("--write", type=Path, help="also write the result as Markdown")
    parser.add_argument("--way", choices=sorted(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(WAYS[arguments.way](arguments.folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="adapters-") as temporary:
        folder = Path(temporary)
        sizes = prepare(arguments.model, folder)
        found = {way: _in_process(way, folder) for way in WAYS}
    text = as_markdown(found, sizes, arguments.model)
    print(text)
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(text, encoding="utf-8")
    return 0 if all(is_equal(found, way) for way in WAYS) else 1


def is_equal(found: dict[str, dict[str, Any]], way: str) -> bool:
    """Whether a way gives the tokens, and where logits can be had their bits, of models of their own."""
    return all(found[way].get(key, found["own"][key]) == found["own"][key] for key in ("tokens", "bits"))


def prepare(model: Path | None, folder: Path) -> dict[str, float]:
    """One export that serves all tasks and one for each alone; bytes of each kind of file."""
    import bcq

    base = bcq.quantize(model or _random_model(folder / "model"), folder / "base", **OPTIONS)
    tasks = [_task(base, name, seed) for seed, name in enumerate(TASKS)]
    for task in tasks:
        task.save(folder / "tasks" / task.name)
        bcq.export(base, folder / "own" / task.name, adapter=task, allow_partial=True)
    bcq.export(base, folder / "all", adapters=tasks, allow_partial=True)
    own = folder / "own" / TASKS[0]
    return {
        "numbers": float(tasks[0].count),
        "adapter": float(tasks[0].nbytes),
        "file": float((folder / "all" / "adapters" / TASKS[0] / "model.onnx_adapter").stat().st_size),
        "model": float(sum(path.stat().st_size for path in own.glob("model.onnx*"))),
    }


def _random_model(folder: Path) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    # Weights of this spread make logits depend on the whole prompt, so that tasks differ in their tokens.
    sizes: dict[str, Any] = {**SIZES, "initializer_range": 0.08, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.GPT2Config(**sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def _task(base: Any, name: str, seed: int) -> Any:
    """Factors of all products changed at random by up to a tenth; embeddings stay, as in AlphaTuning."""
    from bcq.adapters.adapter import Adapter, Alphas
    from bcq.packing import unpack

    rng = np.random.default_rng(seed)
    alphas = {}
    for stored in base.names():
        if base.matrices[stored].kind != "embedding":
            alpha = unpack(base.packed(stored)).alpha[0]
            alphas[stored] = Alphas((alpha * rng.uniform(0.9, 1.1, alpha.shape)).astype(np.float16))
    return Adapter(name, base.base_hash, alphas)


def _in_process(way: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if done.stderr:
        raise RuntimeError(f"{way} is not quiet: {done.stderr[:2000]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no anonymous memory in smaps_rollup")


def _served(request: Callable[[str], Any], opened: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Memory before and after all tasks were served, and again after many swaps."""
    for _ in range(2):
        request("")
    before = anonymous()
    opened()
    tokens = {task: request(task) for task in TASKS}
    after = anonymous()
    for _ in range(5):
        for task in TASKS:
            request(task)
    return {"tokens": tokens, "added": after - before, "later": anonymous() - before}


def _bits(logits: Callable[[str], Any]) -> dict[str, Any]:
    """A hash of each task's logits over the prompt."""
    return {"bits": {task: hashlib.sha256(logits(task).tobytes()).hexdigest() for task in TASKS}}


def _logits(model: Any, task: str | None = None) -> Any:
    mask = np.ones((1, len(PROMPT)), np.int64)
    return model.logits(np.array([PROMPT]), model.empty_cache(), mask, task)[0]


def fed(folder: Path) -> dict[str, Any]:
    """One session; a task's values are fed (`bcq.load(...).generate(adapter=...)`)."""
    import bcq

    model = bcq.load(folder / "all")
    found = _served(lambda task: model.generate(PROMPT, NEW, adapter=task or None))
    found |= _bits(lambda task: _logits(model, task))
    return {**found, **_swap_times(model), **_batch_times(model), "first": _first_use(folder)}


def _first_use(folder: Path) -> float:
    """CPU seconds until a task's values on the disk are ready to be fed; the median of all tasks."""
    from bcq.adapters.tasks import Tasks

    tasks, times = Tasks(folder / "all"), []
    for task in TASKS:
        began = time.process_time()
        tasks.feeds(task)
        times.append(time.process_time() - began)
    return statistics.median(times)


def _swap_times(model: Any) -> dict[str, float]:
    """Median CPU seconds of decode steps: the same task as the step before, another one, the base."""
    tokens, mask = np.array([PROMPT[-1:]]), np.ones((1, len(PROMPT) + 1), np.int64)
    _, past = model.logits(np.array([PROMPT]), model.empty_cache(), mask[:, :-1])
    times: dict[bool, list[float]] = {True: [], False: []}
    current = 0
    for step in range(2 * STEPS):
        swap = step % 2 == 1
        current += swap
        began = time.process_time()
        model.logits(tokens, past, mask, TASKS[current % len(TASKS)])
        times[swap].append(time.process_time() - began)
    base = []
    for _ in range(STEPS):
        began = time.process_time()
        model.logits(tokens, past, mask)
        base.append(time.process_time() - began)
    return {
        "same": statistics.median(times[False]),
        "swap": statistics.median(times[True]),
        "base": statistics.median(base),
    }


def _batch_times(model: Any) -> dict[str, float]:
    """CPU seconds for a batch of one task, of four, and for its rows one by one; the best of three."""
    prompts = [PROMPT[row:] for row in range(ROWS)]
    mixed = [TASKS[row % len(TASKS)] for row in range(ROWS)]
    kinds: dict[str, Callable[[], Any]] = {
        "batch_one": lambda: model.generate_batch(prompts, [TASKS[0]] * ROWS, NEW),
        "batch_mixed": lambda: model.generate_batch(prompts, mixed, NEW),
        "one_by_one": lambda: [
            model.generate(prompt, NEW, adapter=task) for prompt, task in zip(prompts, mixed, strict=True)
        ],
    }
    if kinds["batch_mixed"]() != kinds["one_by_one"]():
        raise RuntimeError("rows of a batch differ from rows alone")
    best = dict.fromkeys(kinds, np.inf)
    for _ in range(3):
        for kind, call in kinds.items():
            began = time.process_time()
            call()
            best[kind] = min(best[kind], time.process_time() - began)
    return best


def files(folder: Path) -> dict[str, Any]:
    """One plain session of onnxruntime; tasks are its adapter files."""
    import bcq
    from bcq.adapters.ort import FILE, run_options

    model = bcq.load(folder / "all")
    session, options = model.session, dict[str, Any]()

    class Active:
        """The session with the run options of the current request."""

        task = ""

        def run(self, names: Any, feeds: Any) -> Any:
            return session.run(names, feeds, options[self.task][0] if self.task else None)

    def load() -> None:
        options.update({t: run_options(folder / "all" / "adapters" / t / FILE) for t in TASKS})

    def request(task: str) -> Any:
        Active.task = task
        return model.generate(PROMPT, NEW)

    def logits(task: str) -> Any:
        Active.task = task
        return _logits(model)

    model.session = Active()
    return {**_served(request, load), **_bits(logits)}


def genai(folder: Path) -> dict[str, Any]:
    """onnxruntime-genai with the same files."""
    import onnxruntime_genai as og

    model = og.Model(str(folder / "all"))
    adapters = og.Adapters(model)

    def load() -> None:
        for task in TASKS:
            adapters.load(str(folder / "all" / "adapters" / task / "model.onnx_adapter"), task)

    def request(task: str) -> list[int]:
        settings = og.GeneratorParams(model)
        settings.set_search_options(max_length=len(PROMPT) + NEW)
        generator = og.Generator(model, settings)
        if task:
            generator.set_active_adapter(adapters, task)
        generator.append_tokens(PROMPT)
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)][len(PROMPT) :]

    return _served(request, load)


def own(folder: Path) -> dict[str, Any]:
    """What it is compared with: a model of its own for each task, each in a session of its own."""
    import bcq

    models = {"": bcq.load(folder / "all")}

    def load() -> None:
        models.update({task: bcq.load(folder / "own" / task) for task in TASKS})

    found = _served(lambda task: models[task].generate(PROMPT, NEW), load)
    return {**found, **_bits(lambda task: _logits(models[task]))}


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {"own": own, "fed": fed, "files": files, "genai": genai}
_TITLES = {
    "own": "a model of its own for each task, four sessions",
    "fed": "one session, values fed: `model.generate(prompt, adapter=...)`",
    "files": "one session, adapter files: `RunOptions.add_active_adapter`",
    "genai": "onnxruntime-genai, adapter files: `generator.set_active_adapter`",
}


def as_markdown(found: dict[str, dict[str, Any]], sizes: dict[str, float], model: Path | None) -> str:
    """The page for docs/benchmarks."""
    from bcq.bench.machine import machine
    from bcq.report import table

    def row(way: str) -> Sequence[str]:
        result = found[way]
        added = [f"{result[key] / MB:+.2f}" for key in ("added", "later")]
        what = "logits, bit by bit" if "bits" in result else "tokens"
        return [_TITLES[way], *added, what if is_equal(found, way) else "NO"]

    one = found["fed"]
    ran = machine()
    name = "GPT-2 small's layers, seeded random weights" if model is None else model.name
    digest = hashlib.sha256(json.dumps(one["tokens"]).encode()).hexdigest()[:12]
    ms = {key: f"{value * 1e3:.2f} ms" for key, value in one.items() if isinstance(value, float)}
    rows = table(["way", "added MB", "20 swaps later", "equal"], [row(way) for way in WAYS], align="lrrl")
    return f"""# Swapping tasks

{name}, 3 bits, row-wise. Four tasks of {sizes["numbers"]:,.0f} factors each: {sizes["adapter"] / KB:.0f} kB,
{sizes["file"] / KB:.0f} kB as an adapter file, beside a model of {sizes["model"] / MB:.1f} MB.
Requests have {len(PROMPT)} prompt tokens and ask for {NEW} (SHA-256 of all tokens: {digest}).

{rows}

- Added: anonymous memory once the tasks are open and each has served a request, over that after two requests
  of the base; then again after 20 requests more.
- Times are of the CPU, over all threads, so that a busy machine counts little.
- A decode step that runs another task than the step before: {ms["swap"]}; the same task: {ms["same"]};
  the base: {ms["base"]} (medians of {STEPS}). Reading and arranging a task's values, once: {ms["first"]}.
- A batch of {ROWS} rows, {NEW} new tokens each, all of one task: {ms["batch_one"]}; of four tasks:
  {ms["batch_mixed"]}; one by one: {ms["one_by_one"]} (best of 3); the tokens are equal.

Made by `python tools/adapter_swap.py --write adapters.md`: {ran["cpu"]}, {os.cpu_count()} CPUs, {ran["isa"]},
load {ran["load"]} on {platform.machine()}.
"""


if __name__ == "__main__":
    sys.exit(main())
