# SPDX-License-Identifier: Apache-2.0
"""What ``genai_config.json`` says about a decoder, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcq.errors import InputError
from bcq.generation.sampling import is_integer


@dataclass(frozen=True)
class Described:
    """The part of the configuration that generation needs.

    Attributes:
        context_length: tokens that prompt and continuation may have together.
        vocabulary: how many tokens there are.
        end_tokens: ids that end a text.
        shares_buffer: whether past and present of the cache may be one buffer.
    """

    context_length: int
    vocabulary: int
    end_tokens: frozenset[int]
    shares_buffer: bool


def read_described(file: Path, config: dict[str, Any], session: Any) -> Described:
    """Reads and checks the contents of ``genai_config.json``.

    Args:
        file: where they come from, for messages.
        config: the contents.
        session: of the same export.

    Raises:
        InputError: E102 for a key that is missing, of another type, or not what the session says.
    """
    model = config.get("model")
    if not isinstance(model, dict):
        raise _wrong(file, "model", model, "an object")
    for key in ("context_length", "vocab_size"):
        value = model.get(key)
        if not is_integer(value) or model[key] < 1:
            raise _wrong(file, f"model.{key}", value, "an integer that is at least 1")
    end = model.get("eos_token_id", [])
    ends = end if isinstance(end, list) else [end]
    if not all(is_integer(token) for token in ends):
        raise _wrong(file, "model.eos_token_id", end, "a token id or a list of them")
    _check_vocabulary(file, model["vocab_size"], session)
    search = config.get("search")
    shares = isinstance(search, dict) and search.get("past_present_share_buffer") is True
    return Described(model["context_length"], model["vocab_size"], frozenset(ends), shares)


def _check_vocabulary(file: Path, vocabulary: int, session: Any) -> None:
    outputs = {value.name: value.shape for value in session.get_outputs()}
    if not outputs.get("logits"):
        raise InputError("E102", f"{file.parent}: the model has no output 'logits'.", "Export it again.")
    width = outputs["logits"][-1]
    if isinstance(width, int) and width != vocabulary:
        raise _wrong(file, "model.vocab_size", vocabulary, f"{width}, the width of the model's logits")


def _wrong(file: Path, key: str, got: object, expected: str) -> InputError:
    return InputError("E102", f"{file}: {key}: got {got!r}, expected {expected}.", "Export the model again.")
