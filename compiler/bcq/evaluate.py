# SPDX-License-Identifier: Apache-2.0
"""Perplexity of an exported decoder on a text, with onnxruntime and numpy only.

Protocol: the tokens of the text are cut into windows that do not overlap; each starts from an empty cache,
and every token of a window but its first is predicted from those before it. A last window of one token is
left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.adapters.tasks import Task
from bcq.errors import InputError, UsageError
from bcq.generation.model import Model, load
from bcq.progress import SILENT, Progress

MAX_WINDOW = 1024  # longer contexts cost memory (window x vocabulary logits) and change figures little
Logits = Callable[[Sequence[int]], NDArray[Any]]  # token ids [L] -> logits [L, vocabulary]


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per predicted token.
        tokens: how many tokens were predicted.
        window: tokens a window.
        top_1: share of tokens that the model's likeliest guess hits.
        guesses: the likeliest token at every predicted place, to compare models with each other.
        losses: negative log-likelihood in nats at every predicted place, likewise.
    """

    perplexity: float
    tokens: int
    window: int
    top_1: float
    guesses: NDArray[np.int64]
    losses: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what stands for every place is left out."""
        return {name: value for name, value in asdict(self).items() if name not in ("guesses", "losses")}


def perplexity(
    folder: str | Path,
    text: str | Sequence[int],
    window: int | None = None,
    limit: int | None = None,
    with_library: bool = True,
    progress: Progress = SILENT,
    adapter: Task = None,
    bits: int | None = None,
) -> Perplexity:
    """Measures an exported folder.

    Args:
        folder: what ``bcq export`` wrote for a decoder.
        text: text, or its token ids.
        window: tokens a window; the model's context, at most 1024, when None.
        limit: measure only so many windows.
        with_library: False runs the model-local functions instead of the op library.
        progress: told about each window.
        adapter: the task that the model shall run, as `Model.generate` takes it; None for the base.
        bits: the precision, for an export that serves several.

    Raises:
        InputError: no such folder, no tokenizer in it, or a text of less than two tokens; E301 to E303 for an
            adapter that the export cannot run.
        UnsupportedError: E401 when the folder holds no decoder.
        UsageError: E202 for a window that is too short or too long.
    """
    model = load(folder, with_library=with_library, bits=bits)
    model.use(adapter)
    tokens = model.tokenizer.encode(text, add_special_tokens=False).ids if isinstance(text, str) else text
    return measure(decoder_logits(model), tokens, window_for(model.context_length, window), limit, progress)


def measure(
    logits: Logits, tokens: Sequence[int], window: int, limit: int | None = None, progress: Progress = SILENT
) -> Perplexity:
    """The protocol of this module over any function from token ids to logits."""
    parts = list(windows(tokens, window))[:limit]
    if not parts:
        raise InputError("E102", f"the text has {len(tokens)} tokens, expected at least 2.")
    losses: list[NDArray[np.float64]] = []
    guesses: list[NDArray[np.int64]] = []
    progress.start("perplexity", len(parts))
    for number, part in enumerate(parts):
        scores = logits(part)[:-1]
        losses.append(negative_log_likelihood(scores, part[1:]))
        guesses.append(scores.argmax(axis=-1).astype(np.int64))
        progress.step(f"window {number + 1}", f"{math.exp(min(700.0, float(losses[-1].mean()))):.2f}")
    progress.done()
    all_losses, all_guesses = np.concatenate(losses), np.concatenate(guesses)
    truth = np.concatenate([np.asarray(part[1:], dtype=np.int64) for part in parts])
    return Perplexity(
        perplexity=float(np.exp(all_losses.mean())),
        tokens=len(truth),
        window=window,
        top_1=float((all_guesses == truth).mean()),
        guesses=all_guesses,
        losses=all_losses,
    )


def windows(tokens: Sequence[int], window: int) -> Iterator[Sequence[int]]:
    """Cuts token ids into consecutive pieces of at most `window`, each of at least two."""
    for start in range(0, len(tokens), window):
        part = tokens[start : start + window]
        if len(part) >= 2:
            yield part


def negative_log_likelihood(logits: NDArray[Any], targets: Sequence[int]) -> NDArray[np.float64]:
    """-log softmax(logits)[target] in nats, one a row; ``logits [L, V]``, ``targets [L]``."""
    scores = logits.astype(np.float64)
    top = scores.max(axis=-1)
    normalizer: NDArray[np.float64] = top + np.log(np.exp(scores - top[:, None]).sum(axis=-1))
    chosen: NDArray[np.float64] = scores[np.arange(len(targets)), np.asarray(targets)]
    return np.subtract(normalizer, chosen)


def decoder_logits(model: Model) -> Logits:
    """An exported decoder as a function from token ids to logits, with an empty cache each time."""

    def logits(tokens: Sequence[int]) -> NDArray[Any]:
        row = np.asarray([tokens], dtype=np.int64)
        scores, _ = model.logits(row, model.empty_cache(), np.ones_like(row))
        first: NDArray[Any] = scores[0]
        return first

    return logits


def window_for(context: int, window: int | None = None) -> int:
    """The window asked for, or the model's context up to `MAX_WINDOW`.

    Raises:
        UsageError: E202 when it is shorter than 2 or longer than the context.
    """
    chosen = min(context, MAX_WINDOW) if window is None else window
    if not 2 <= chosen <= context:
        raise UsageError(
            "E202", f"--window: got {chosen} tokens, expected 2 to {context}, the model's context."
        )
    return chosen


def read_text(path: Path) -> str:
    """A UTF-8 text file.

    Raises:
        InputError: E101 when it does not exist, E103 when it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("E103", f"'{path}' is not UTF-8 text: byte {error.start} is wrong.") from error
    except OSError as error:
        raise InputError("E101", f"'{path}' cannot be read: {error.strerror}.") from error
