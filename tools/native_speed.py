# SPDX-License-Identifier: Apache-2.0
"""Times of one decoder with and without onnxruntime, one thread each, in turns token by token.

Usage: python tools/native_speed.py FOLDER [--prompt 128] [--tokens 64]

Prints one line of JSON: for each way, milliseconds of the best of three prompts, and the median and first
decile of a step. The three take turns in one process, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bcq
from bcq.files.checkpoint import read_json
from bcq.files.genai import CONFIG_FILE
from bcq.generation.model import Model
from bcq.native.library import OpenDecoder
from bcq.runtime import default_options

PROMPTS = 3  # the same prompt so often; the best one counts


@dataclass(frozen=True)
class Way:
    """One way to run tokens, and to forget all that were run."""

    run: Callable[[Sequence[int]], Any]
    forget: Callable[[int], None]

    def seconds(self, tokens: Sequence[int]) -> float:
        """How long these tokens take."""
        began = time.perf_counter()
        self.run(tokens)
        return time.perf_counter() - began


def by_session(folder: Path, weights: str, room: int) -> Way:
    """A session of onnxruntime with one thread."""
    options = default_options()
    options.intra_op_num_threads = 1
    model = Model(folder, bcq.session(folder, options, weights=weights), read_json(folder / CONFIG_FILE))
    cache, task = model.decoder.cache(room), model.values(None)
    return Way(lambda tokens: model.decoder.run(tokens, cache, task), cache.keep)


def measure(folder: Path, prompt: int, tokens: int) -> dict[str, dict[str, float]]:
    """Milliseconds by way and kind."""
    room = prompt + tokens
    opened = OpenDecoder(folder / "model.onnx", room)
    ways = {weights: by_session(folder, weights, room) for weights in ("auto", "mapped")}
    ways["native"] = Way(opened.step, opened.keep)
    ids = np.random.default_rng(0).integers(2, opened.vocabulary, room).tolist()
    prompts: dict[str, list[float]] = {name: [] for name in ways}
    steps: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(PROMPTS):
        for name, way in ways.items():
            way.forget(0)
            prompts[name].append(way.seconds(ids[:prompt]))
    for token in ids[prompt:]:
        for name, way in ways.items():
            steps[name].append(way.seconds([token]))
    return {
        name: {
            "prompt": 1e3 * min(prompts[name]),
            "step": 1e3 * float(np.median(times)),
            "decile": 1e3 * float(np.quantile(times, 0.1)),
        }
        for name, times in steps.items()
    }


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.folder, arguments.prompt, arguments.tokens)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
