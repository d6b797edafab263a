# SPDX-License-Identifier: Apache-2.0
"""Parity of an encoder: the same tokens, padding included, in onnxruntime and in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import parity
from bcq.errors import InputError, UsageError
from bcq.files.exported import ExportedWeights
from bcq.generation.text import check_tokens, open_tokenizer, tokenize
from bcq.parity import ParityResult
from bcq.parity.reference import dequantized_model, encode, original_model
from bcq.parity.source import difference
from bcq.progress import Progress
from bcq.runtime import session


def verify_encoder(
    folder: Path,
    against: Path | None,
    prompt: str | None,
    tokens: Sequence[int] | None,
    progress: Progress,
    bits: int | None = None,
) -> ParityResult:
    """See `bcq.parity.verify`; a second row is half padding, and padded places are not compared."""
    progress.start("verify", 2 if against is None else 3)
    weights = ExportedWeights.open(folder, bits)
    running = session(folder, bits=bits)
    names = [value.name for value in running.get_outputs()]
    feeds = _feeds(_tokens(folder, prompt, tokens, weights), [value.name for value in running.get_inputs()])
    expected = encode(dequantized_model(folder, weights), feeds, names)
    progress.step("PyTorch with dequantized weights")
    got = running.run(None, feeds)
    progress.step("onnxruntime")
    mask = feeds["attention_mask"]
    half = any(output.dtype == np.float16 for output in got)
    result = parity.compare(_real(got, mask), _real(expected, mask), parity.tolerance(weights, half))
    reason = None if against is None else difference(folder, weights, against)
    if reason is not None:
        return replace(result, ok=False, reason=reason)
    if against is not None:
        original = encode(original_model(against), feeds, names)
        progress.step("PyTorch with the original weights")
        figures = parity.against_original(_real(got, mask), _real(original, mask))
        result = replace(result, original=figures)
    progress.done()
    return result


def _tokens(
    folder: Path, prompt: str | None, tokens: Sequence[int] | None, weights: ExportedWeights
) -> list[int]:
    vocabulary = _vocabulary(folder, weights)
    if tokens is None and prompt is not None:
        tokens = tokenize(open_tokenizer(folder), prompt)
    if tokens is not None:
        return _within_positions(folder, check_tokens(tokens, vocabulary))
    return parity.random_tokens(vocabulary, parity.DEFAULT_PROMPT)


def _vocabulary(folder: Path, weights: ExportedWeights) -> int:
    size = weights.gather_rows.get("input_ids") or parity.described(folder).get("vocab_size")
    if not isinstance(size, int) or size < 1:
        raise InputError("E102", f"{folder / 'config.json'}: vocab_size: got {size!r}, expected an integer.")
    return size


def _within_positions(folder: Path, tokens: list[int]) -> list[int]:
    positions = parity.described(folder).get("max_position_embeddings")
    if isinstance(positions, int) and len(tokens) > positions:
        raise UsageError("E202", f"{len(tokens)} tokens, expected at most {positions} positions.")
    return tokens


def _feeds(tokens: list[int], inputs: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Two rows: all tokens, and the first half of them followed by padding."""
    row = np.array(tokens, np.int64)
    mask = np.ones((2, len(row)), np.int64)
    mask[1, (len(row) + 1) // 2 :] = 0
    feeds = {
        "input_ids": np.stack([row, row]),
        "attention_mask": mask,
        "token_type_ids": np.zeros((2, len(row)), np.int64),
    }
    return {name: feeds[name] for name in inputs}


def _real(outputs: Sequence[NDArray[Any]], mask: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Outputs without the places of padding; one value a row (span logits) becomes one row of places."""
    return [
        output[mask.astype(bool)].reshape(-1, *output.shape[2:])
        if output.ndim == 3
        else np.where(mask.astype(bool), output, 0)
        if output.shape == mask.shape
        else output
        for output in outputs
    ]
