# SPDX-License-Identifier: Apache-2.0
"""Parity of an encoder-decoder: a source, then an answer token by token, in onnxruntime and in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcq import parity
from bcq.files.exported import ExportedWeights
from bcq.generation.encoder_decoder import EncoderDecoder
from bcq.generation.model import load
from bcq.parity import ParityResult
from bcq.parity.reference import Decoded, answer
from bcq.parity.tokens import Answers, compare_answers, pairs
from bcq.progress import Progress


def verify_encoder_decoder(
    folder: Path,
    against: Path | None,
    prompt: str | None,
    tokens: Sequence[int] | None,
    steps: int,
    per_layer: bool,
    progress: Progress,
    bits: int | None = None,
) -> ParityResult:
    """See `bcq.parity.verify`; the prompt is the source, and both sides are fed the reference's answer."""
    model = load(folder, bits=bits)
    assert isinstance(model, EncoderDecoder)  # the folder has its description
    source, begin = _source(model, prompt, tokens), model.begin
    weights = ExportedWeights.open(folder, bits)

    def torch(reference: Any, forced: Sequence[int] | None) -> Decoded:
        return answer(reference, source, begin, steps, forced=forced)

    answers = Answers(1, torch, lambda forced: run_encoder_decoder(model, source, forced))
    return compare_answers(folder, against, model, weights, answers, steps, per_layer, progress)


def run_encoder_decoder(model: EncoderDecoder, source: Sequence[int], forced: Sequence[int]) -> Decoded:
    """The exported model on a source and the tokens of an answer, one at a time with cache."""
    cache, rows = model.decoder.growing_cache(), []
    memory = {**model.values(None), **model.memory([source])}
    for token in (model.begin, *forced):
        rows.append(model.decoder.run([token], cache, memory).astype(np.float32))
    return Decoded(np.stack(rows), [int(row.argmax()) for row in rows], pairs(list(cache.past.values())))


def _source(model: EncoderDecoder, prompt: str | None, tokens: Sequence[int] | None) -> list[int]:
    if tokens is None and prompt is None:
        return parity.random_tokens(model.vocabulary, parity.DEFAULT_PROMPT)
    return model.encode(prompt if tokens is None and prompt is not None else tokens or [])
