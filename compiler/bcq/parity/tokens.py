# SPDX-License-Identifier: Apache-2.0
"""Parity of models that answer token by token: what a decoder and an encoder-decoder are compared by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bcq import parity
from bcq.files.exported import ExportedWeights
from bcq.generation.cache import FLOATS, slots
from bcq.generation.model import Model
from bcq.parity import Array, ParityResult
from bcq.parity.reference import Decoded, dequantized_model, original_model
from bcq.parity.source import difference
from bcq.progress import Progress

# Keys and values of int8 are compared with PyTorch's rounded alike. A value near the middle of two steps may
# fall to either side: the largest of some thousand values is up to 8 times their RMS, a step 1.25 times that
# over 127, 0.08, and an error of 2e-4 moves 2e-4 / 0.08 of the values by one step, 4e-3 RMS; 5e-3 with what
# those move in turn. Layers add up as in `parity.tolerance`.
INT8_CACHE_TOLERANCE = 5e-3
INT8_CACHE_HALF_TOLERANCE = 1.5e-2  # in float16: ten times the error moves ten times as many values


@dataclass(frozen=True)
class Answers:
    """How one kind of model answers, in PyTorch and in onnxruntime.

    Attributes:
        rows: how many rows of logits there are when the answer begins.
        torch: a model of PyTorch, and the tokens that it is fed or None for its own.
        exported: the export, fed tokens.
        floats: the same answer with keys and values as floats.
    """

    rows: int
    torch: Callable[[Any, Sequence[int] | None], Decoded]
    exported: Callable[[Sequence[int]], Decoded]
    floats: Callable[[Decoded], Decoded] = lambda answer: answer


def compare_answers(
    folder: Path,
    against: Path | None,
    model: Model,
    weights: ExportedWeights,
    answers: Answers,
    steps: int,
    per_layer: bool,
    progress: Progress,
) -> ParityResult:
    """Feeds both sides the reference's greedy tokens; arguments as for `bcq.parity.verify`."""
    progress.start("verify", 2 if against is None else 3)
    expected = answers.torch(dequantized_model(folder, weights), None)
    progress.step("PyTorch with dequantized weights")
    got = answers.exported(expected.tokens[:steps])
    progress.step("onnxruntime")
    result = parity.compare([got.logits], [expected.logits], allowed(weights, model))
    result = with_tokens(result, got, expected, answers.rows)
    if per_layer:
        result = replace(result, layers=layers_of(answers.floats(got), expected))
    reason = None if against is None else difference(folder, weights, against)
    if reason is not None:
        return replace(result, ok=False, reason=reason)
    if against is not None:
        original = answers.torch(original_model(against), expected.tokens)
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


def with_tokens(result: ParityResult, got: Decoded, expected: Decoded, prompt: int) -> ParityResult:
    """Adds whether greedy tokens are equal; a tie within tolerance, where either is right, does not fail."""
    rows = slice(prompt - 1, None)
    reference = expected.logits[rows]
    slack = 2 * result.tolerance * float(np.sqrt(np.mean(np.square(reference))))
    chosen = np.take_along_axis(reference, got.logits[rows].argmax(-1)[:, None], axis=-1)[:, 0]
    tied = bool((chosen >= reference.max(-1) - slack).all())
    equal = got.tokens == expected.tokens
    return replace(result, tokens_equal=equal, ok=result.ok and (equal or tied))


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
