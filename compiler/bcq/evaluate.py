# SPDX-License-Identifier: Apache-2.0
"""Perplexity of an exported decoder on a text, with onnxruntime and numpy only.

Protocol: the tokens of the text are cut into windows that do not overlap; each starts from an empty cache,
and every token of a window but its first is predicted from those before it. A last window of one token is
left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.errors import InputError, ResourceError, UnsupportedError, UsageError
from bcq.progress import SILENT, Progress

MAX_WINDOW = 1024  # longer contexts cost memory (window x vocabulary logits) and change figures little
_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}

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
    """

    perplexity: float
    tokens: int
    window: int
    top_1: float
    guesses: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the guesses are left out."""
        values = asdict(self)
        del values["guesses"]
        return values


def perplexity(
    folder: str | Path,
    text: str | Sequence[int],
    window: int | None = None,
    limit: int | None = None,
    with_library: bool = True,
    progress: Progress = SILENT,
) -> Perplexity:
    """Measures an exported folder.

    Args:
        folder: what ``bcq export`` wrote for a decoder.
        text: text, or its token ids.
        window: tokens a window; the model's context, at most 1024, when None.
        limit: measure only so many windows.
        with_library: False runs the model-local functions instead of the op library.
        progress: told about each window.

    Raises:
        InputError: no such folder or no tokenizer in it.
        UnsupportedError: E401 when the model is not a decoder with logits.
        UsageError: E202 for a window that is too short or too long.
    """
    folder = Path(folder)
    tokens = encode(folder, text) if isinstance(text, str) else list(text)
    return measure(session_logits(folder, with_library), tokens, window_for(folder, window), limit, progress)


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


def session_logits(folder: Path, with_library: bool = True) -> Logits:
    """Returns the exported decoder as a function from token ids to logits, with an empty cache each time."""
    from bcq import runtime

    session = runtime.session(folder, with_library=with_library)
    if "logits" not in [output.name for output in session.get_outputs()]:
        raise UnsupportedError("E401", f"{folder}: the model has no output 'logits', so it is not a decoder.")
    described = [(port.name, port.shape, port.type) for port in session.get_inputs()]

    def logits(tokens: Sequence[int]) -> NDArray[Any]:
        feeds = {name: first_feed(name, shape, kind, tokens) for name, shape, kind in described}
        result: NDArray[Any] = session.run(["logits"], feeds)[0][0]
        return result

    return logits


def first_feed(
    name: str, shape: Sequence[int | str | None], kind: str, tokens: Sequence[int]
) -> NDArray[Any]:
    """What a decoder's input gets when one sequence starts: ids, full mask, positions, an empty cache."""
    if kind not in _DTYPES:
        raise UnsupportedError("E401", f"input '{name}' has type {kind}, which no decoder cache or id has.")
    dtype = _DTYPES[kind]
    if name == "input_ids":
        return np.asarray([tokens], dtype=dtype)
    if name == "attention_mask":
        return np.ones((1, len(tokens)), dtype=dtype)
    if name == "position_ids":
        return np.arange(len(tokens), dtype=dtype)[None, :]
    if name.startswith("past_key_values."):
        sizes = [1, *(size if isinstance(size, int) else 0 for size in shape[1:])]
        return np.zeros(sizes, dtype=dtype)
    raise UnsupportedError("E401", f"input '{name}' is none of a decoder's inputs.")


def window_for(folder: Path, window: int | None) -> int:
    """The window asked for, or the model's context up to `MAX_WINDOW`."""
    context = context_length(folder)
    chosen = min(context or MAX_WINDOW, MAX_WINDOW) if window is None else window
    if chosen < 2 or (context is not None and chosen > context):
        most = f" to {context}, the model's context" if context else ""
        raise UsageError("E202", f"--window: got {chosen} tokens, expected 2{most}.")
    return chosen


def context_length(folder: Path) -> int | None:
    """Positions that the model knows, from ``config.json``; None when it does not say."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError("E102", f"{folder / 'config.json'} cannot be read: {error}.") from error
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return None


def encode(folder: Path, text: str) -> list[int]:
    """Token ids of a text by the folder's own ``tokenizer.json``, without special tokens."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError("E101", f"'{path}' does not exist.", "Export from a folder that has one.")
    try:
        import tokenizers
    except ImportError as error:
        raise ResourceError(
            "E603", "the package 'tokenizers' is not installed.", "Run `pip install tokenizers`."
        ) from error
    ids: list[int] = tokenizers.Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    return ids


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
