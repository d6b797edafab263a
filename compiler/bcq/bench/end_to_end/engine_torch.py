# SPDX-License-Identifier: Apache-2.0
"""PyTorch in the bench: transformers' model in float32, one token after the other with its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bcq.bench.end_to_end.engine import Logits


class TorchEngine:
    """``AutoModelForCausalLM`` with float32 weights."""

    def __init__(self, path: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        found = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self._model: Any = found.eval()

    def start(self, prompt: Sequence[int], count: int) -> Callable[[], int]:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        new, past = torch.tensor([list(prompt)]), None

        def step() -> int:
            nonlocal new, past
            with torch.inference_mode():
                result = self._model(new, past_key_values=past, use_cache=True, logits_to_keep=1)
            new, past = result.logits[:, -1].argmax(-1, keepdim=True), result.past_key_values
            return int(new)

        return step

    def logits(self, prompt: Sequence[int]) -> Logits:
        """As `bcq.bench.end_to_end.engine.Engine`."""
        with torch.inference_mode():
            scores = self._model(torch.tensor([list(prompt)]), logits_to_keep=1).logits
        return np.asarray(scores[0, -1].numpy(), np.float32)


def open_engine(path: Path, threads: int) -> TorchEngine:
    """Opens a model folder."""
    return TorchEngine(path, threads)
