# SPDX-License-Identifier: Apache-2.0
"""Parity of an encoder-decoder: a source, then an answer token by token, in onnxruntime and in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bcq import parity
from bcq.files.exported import ExportedWeights
from bcq.generation.encoder_decoder import EncoderDecoder
from bcq.generation.model import load
from bcq.parity import ParityResult
from bcq.parity.decoder import allowed, layers_of, pairs, with_tokens
from bcq.parity.reference import Decoded, answer, dequantized_model, original_model
from bcq.parity.source import difference
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
    progress.start("verify", 2 if against is None else 3)
    model = load(folder, bits=bits)
    assert isinstance(model, EncoderDecoder)  # the folder has its description
    source = _source(model, prompt, tokens)
    weights = ExportedWeights.open(folder, bits)
    expected = answer(dequantized_model(folder, weights), source, model.begin, steps)
    progress.step("PyTorch with dequantized weights")
    got = run_encoder_decoder(model, source, expected.tokens[:steps])
    progress.step("onnxruntime")
    result = parity.compare([got.logits], [expected.logits], allowed(weights, model))
    result = with_tokens(result, got, expected, 1)
    if per_layer:
        result = replace(result, layers=layers_of(got, expected))
    reason = None if against is None else difference(folder, weights, against)
    if reason is not None:
        return replace(result, ok=False, reason=reason)
    if against is not None:
        original = answer(original_model(against), source, model.begin, steps, forced=expected.tokens)
        progress.step("PyTorch with the original weights")
        result = replace(result, original=parity.against_original([got.logits], [original.logits]))
    progress.done()
    return result


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
