# SPDX-License-Identifier: Apache-2.0
"""Parity of a decoder: prompt, then single tokens with cache, in onnxruntime and in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcq import parity
from bcq.errors import UsageError
from bcq.files.exported import ExportedWeights
from bcq.generation.cache import slots
from bcq.generation.model import Model, load
from bcq.generation.text import check_tokens, tokenize
from bcq.parity import Array, ParityResult
from bcq.parity.reference import Decoded, decode
from bcq.parity.tokens import Answers, compare_answers, pairs
from bcq.passes.int8_cache import scale_name
from bcq.progress import Progress


def verify_decoder(
    folder: Path,
    against: Path | None,
    prompt: str | None,
    tokens: Sequence[int] | None,
    steps: int,
    per_layer: bool,
    progress: Progress,
    bits: int | None = None,
) -> ParityResult:
    """See `bcq.parity.verify`; both sides are fed the reference's greedy tokens."""
    model = load(folder, bits=bits)
    start = _prompt(model, prompt, tokens, steps)
    weights = ExportedWeights.open(folder, bits)

    def torch(reference: Any, forced: Sequence[int] | None) -> Decoded:
        cache = reference_cache(weights, model) if forced is None else None
        return decode(reference, start, steps, forced=forced, cache=cache)

    def exported(forced: Sequence[int]) -> Decoded:
        return run_decoder(model, start, forced)

    answers = Answers(len(start), torch, exported, lambda answer: _in_floats(answer, model, weights))
    return compare_answers(folder, against, model, weights, answers, steps, per_layer, progress)


def run_decoder(model: Model, prompt: Sequence[int], forced: Sequence[int]) -> Decoded:
    """The exported model on a prompt and then on given tokens, one at a time with cache."""
    past, rows, length = model.empty_cache(), [], 0
    for new in [list(prompt), *[[token] for token in forced]]:
        length += len(new)
        logits, past = model.logits(np.array([new], np.int64), past, np.ones((1, length), np.int64))
        rows.append(logits[0].astype(np.float32))
    return Decoded(np.concatenate(rows), [int(row[-1].argmax()) for row in rows], pairs(list(past.values())))


def _prompt(model: Model, prompt: str | None, tokens: Sequence[int] | None, steps: int) -> list[int]:
    if tokens is None and prompt is not None:
        tokens = tokenize(model.tokenizer, prompt)
    if tokens is None:
        room = model.context_length - steps
        tokens = parity.random_tokens(model.vocabulary, max(1, min(parity.DEFAULT_PROMPT, room)))
    tokens = check_tokens(tokens, model.vocabulary)
    if len(tokens) + steps > model.context_length:
        raise UsageError(
            "E202",
            f"{len(tokens)} prompt tokens and {steps} steps, expected at most"
            f" {model.context_length} positions.",
        )
    return tokens


def reference_cache(weights: ExportedWeights, model: Model) -> Any:
    """A cache for PyTorch that holds what the model's own does; None for an ordinary one."""
    if not any(slot.dtype == np.int8 for slot in slots(model.session)):
        return None
    from bcq.frontends.rounded_cache import RoundedCache

    return RoundedCache(pairs(_scales(weights, model)))


def _in_floats(got: Decoded, model: Model, weights: ExportedWeights) -> Decoded:
    """The same with the values that a cache of int8 stands for."""
    values = [tensor for layer in got.layers for tensor in layer]
    if any(value.dtype == np.int8 for value in values):
        scales = _scales(weights, model)
        values = [value * scale for value, scale in zip(values, scales, strict=True)]
    return Decoded(got.logits, got.tokens, pairs(values))


def _scales(weights: ExportedWeights, model: Model) -> list[Array]:
    return [weights.dense[scale_name(slot.name)].numpy() for slot in slots(model.session)]
