# SPDX-License-Identifier: Apache-2.0
"""Parity of a decoder: prompt, then single tokens with cache, in onnxruntime and in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bcq import parity
from bcq.errors import UsageError
from bcq.files.exported import ExportedWeights
from bcq.generation.cache import FLOATS, slots
from bcq.generation.model import Model, load
from bcq.generation.text import check_tokens, tokenize
from bcq.parity import Array, ParityResult
from bcq.parity.reference import Decoded, decode, dequantized_model, original_model
from bcq.parity.source import difference
from bcq.passes.int8_cache import scale_name
from bcq.progress import Progress

# Keys and values of int8 are compared with PyTorch's rounded alike. A value near the middle of two steps may
# fall to either side: the largest of some thousand values is up to 8 times their RMS, a step 1.25 times that
# over 127, 0.08, and an error of 2e-4 moves 2e-4 / 0.08 of the values by one step, 4e-3 RMS; 5e-3 with what
# those move in turn. Layers add up as in `parity.tolerance`.
INT8_CACHE_TOLERANCE = 5e-3
INT8_CACHE_HALF_TOLERANCE = 1.5e-2  # in float16: ten times the error moves ten times as many values


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
    progress.start("verify", 2 if against is None else 3)
    model = load(folder, bits=bits)
    start = _prompt(model, prompt, tokens, steps)
    weights = ExportedWeights.open(folder, bits)
    expected = decode(dequantized_model(folder, weights), start, steps, cache=reference_cache(weights, model))
    progress.step("PyTorch with dequantized weights")
    got = run_decoder(model, start, expected.tokens[:steps])
    progress.step("onnxruntime")
    result = parity.compare([got.logits], [expected.logits], allowed(weights, model))
    result = with_tokens(result, got, expected, len(start))
    if per_layer:
        result = replace(result, layers=layers_of(_in_floats(got, model, weights), expected))
    reason = None if against is None else difference(folder, weights, against)
    if reason is not None:
        return replace(result, ok=False, reason=reason)
    if against is not None:
        original = decode(original_model(against), start, steps, forced=expected.tokens)
        progress.step("PyTorch with the original weights")
        result = replace(result, original=parity.against_original([got.logits], [original.logits]))
    progress.done()
    return result


def allowed(weights: ExportedWeights, model: Model) -> float:
    """What the relative RMS of the logits may reach, for the types of the model's activations and cache.

    In float16 other operators (norms, rotations, attention, sums) round as many results as products do.
    """
    outputs = {value.name: value.type for value in model.session.get_outputs()}
    half = FLOATS[outputs["logits"]] == np.float16
    others = parity.HALF_ROUNDING * math.sqrt(weights.matmuls + 1) if half else 0.0
    cached = INT8_CACHE_HALF_TOLERANCE if half else INT8_CACHE_TOLERANCE
    caches = [slot.dtype for slot in slots(model.session)].count(np.int8)
    return math.hypot(parity.tolerance(weights, half), others, cached * math.sqrt(caches))


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


def with_tokens(result: ParityResult, got: Decoded, expected: Decoded, prompt: int) -> ParityResult:
    """Adds whether greedy tokens are equal; a tie within tolerance, where either is right, does not fail."""
    rows = slice(prompt - 1, None)
    reference = expected.logits[rows]
    slack = 2 * result.tolerance * float(np.sqrt(np.mean(np.square(reference))))
    chosen = np.take_along_axis(reference, got.logits[rows].argmax(-1)[:, None], axis=-1)[:, 0]
    tied = bool((chosen >= reference.max(-1) - slack).all())
    equal = got.tokens == expected.tokens
    return replace(result, tokens_equal=equal, ok=result.ok and (equal or tied))


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


def pairs(values: list[Array]) -> list[tuple[Array, Array]]:
    """Keys and values of each layer."""
    return list(zip(values[::2], values[1::2], strict=True))


def layers_of(got: Decoded, expected: Decoded) -> list[dict[str, Any]]:
    """The relative error of each layer's keys and values."""
    return [
        {
            "layer": index,
            "keys": parity.relative_rms(ours[0] - theirs[0], theirs[0]),
            "values": parity.relative_rms(ours[1] - theirs[1], theirs[1]),
        }
        for index, (ours, theirs) in enumerate(zip(got.layers, expected.layers, strict=True))
    ]
