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
from bcq.exported import ExportedWeights
from bcq.generate import open_tokenizer
from bcq.parity import ParityResult
from bcq.progress import Progress
from bcq.reference import dequantized_model, encode, original_model
from bcq.runtime import session


def verify_encoder(
    folder: Path, against: Path | None, prompt: str | None, tokens: Sequence[int] | None, progress: Progress
) -> ParityResult:
    """See `bcq.parity.verify`; a second row is half padding, and padded places are not compared."""
    progress.start("verify", 2 if against is None else 3)
    weights = ExportedWeights.open(folder)
    running = session(folder)
    names = [value.name for value in running.get_outputs()]
    feeds = _feeds(_tokens(folder, prompt, tokens, weights), [value.name for value in running.get_inputs()])
    expected = encode(dequantized_model(folder, weights), feeds, names)
    progress.step("PyTorch with dequantized weights")
    got = running.run(None, feeds)
    progress.step("onnxruntime")
    mask = feeds["attention_mask"]
    result = parity.compare(_real(got, mask), _real(expected, mask), parity.tolerance(weights))
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
    if tokens is not None:
        return list(tokens)
    if prompt is not None:
        return list(open_tokenizer(folder).encode(prompt).ids)
    vocabulary = weights.gather_rows.get("input_ids") or parity.described(folder)["vocab_size"]
    return parity.random_tokens(vocabulary, parity.DEFAULT_PROMPT)


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
