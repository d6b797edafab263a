# SPDX-License-Identifier: Apache-2.0
"""llama.cpp in the bench, through the C interface that llama-cpp-python brings along."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bcq.bench.end_to_end.engine import Logits

CONTEXT = 512  # positions of the cache: prompts and answers of the bench are shorter


@cache
def library() -> Any:
    """The C interface, without its log.

    Raises:
        ImportError: when llama-cpp-python is not installed, or its library cannot be loaded.
    """
    try:
        found = import_module("llama_cpp.llama_cpp")
    except (OSError, RuntimeError, FileNotFoundError) as error:
        raise ImportError(f"llama-cpp-python cannot be loaded: {error}") from error
    found.llama_log_set(_silent(found), None)
    found.llama_backend_init()
    return found


@cache
def _silent(found: Any) -> Any:
    """A log callback that says nothing; it must live as long as the library."""
    return found.llama_log_callback(lambda *_: None)


class LlamaEngine:
    """``llama_decode`` and the largest logit: what its own greedy sampler computes, without Python lists."""

    def __init__(self, path: Path, threads: int, context: int = CONTEXT) -> None:
        self._library = library()
        options = self._library.llama_model_default_params()
        self._model = self._library.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise ValueError(f"llama.cpp refuses {path}")
        settings = self._library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_threads = settings.n_threads_batch = threads
        self._context = self._library.llama_init_from_model(self._model, settings)
        vocabulary = self._library.llama_model_get_vocab(self._model)
        self._width = self._library.llama_vocab_n_tokens(vocabulary)

    def start(self, prompt: Sequence[int], count: int) -> Callable[[], int]:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        new = list(prompt)

        def step() -> int:
            nonlocal new
            token = int(np.argmax(self._scores(new)))
            new = [token]
            return token

        return step

    def logits(self, prompt: Sequence[int]) -> Logits:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        return np.array(self._scores(list(prompt)), np.float32)

    def _scores(self, tokens: list[int]) -> Logits:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self._library.llama_decode(
            self._context, self._library.llama_batch_get_one(array, len(tokens))
        )
        if status:
            raise ValueError(f"llama_decode ended with {status}")
        return np.ctypeslib.as_array(self._library.llama_get_logits_ith(self._context, -1), (self._width,))


def open_engine(path: Path, threads: int) -> LlamaEngine:
    """Opens a ``.gguf`` file."""
    return LlamaEngine(path, threads)
