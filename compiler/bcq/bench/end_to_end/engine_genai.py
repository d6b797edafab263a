# SPDX-License-Identifier: Apache-2.0
"""onnxruntime-genai in the bench: its own generator on a folder of its own model builder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai

from bcq.bench.end_to_end.engine import Logits


class GenaiEngine:
    """``og.Generator``, greedy."""

    def __init__(self, path: Path, threads: int) -> None:
        config = onnxruntime_genai.Config(str(path))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        self._running: Any = None  # one request's generator, kept until the next: freeing it is not timed

    def start(self, prompt: Sequence[int], count: int) -> Callable[[], int]:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        generator = self._begin(prompt, count)

        def step() -> int:
            generator.generate_next_token()
            return int(generator.get_next_tokens()[0])

        return step

    def logits(self, prompt: Sequence[int]) -> Logits:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        scores = np.asarray(self._begin(prompt, 1).get_logits(), np.float32)
        last: Logits = scores.reshape(-1, scores.shape[-1])[-1]
        return last

    def _begin(self, prompt: Sequence[int], count: int) -> Any:
        length = len(prompt) + count
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, max_length=length, min_length=length)
        self._running = onnxruntime_genai.Generator(self._model, parameters)
        self._running.append_tokens(list(prompt))
        return self._running


def open_engine(path: Path, threads: int) -> GenaiEngine:
    """Opens a folder with ``genai_config.json``."""
    return GenaiEngine(path, threads)
