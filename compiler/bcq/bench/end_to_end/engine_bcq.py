# SPDX-License-Identifier: Apache-2.0
"""Our own exports in the bench, by the same calls as ``bcq run``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bcq import Model
from bcq.bench.end_to_end.engine import Logits
from bcq.files.checkpoint import read_json
from bcq.files.genai import CONFIG_FILE
from bcq.runtime import default_options, session


def open_model(path: Path, threads: int, profile: Path | None = None) -> Model:
    """An export on so many threads; with onnxruntime's profiler on, which writes to a file of this prefix."""
    options = default_options()
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    model = Model(path, session(path, options), read_json(path / CONFIG_FILE))
    model.end_tokens = frozenset()  # every request has the length that was asked for
    return model


class BcqEngine:
    """`bcq.load(folder).stream`."""

    def __init__(self, path: Path, threads: int) -> None:
        self._model = open_model(path, threads)

    def start(self, prompt: Sequence[int], count: int) -> Callable[[], int]:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        return self._model.stream(prompt, count).__next__

    def logits(self, prompt: Sequence[int]) -> Logits:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        decoder = self._model.decoder
        scores = decoder.run(prompt, decoder.cache(len(prompt)), decoder.constant({}))
        return np.array(scores, np.float32)


def open_engine(path: Path, threads: int) -> BcqEngine:
    """Opens an export."""
    return BcqEngine(path, threads)
