# SPDX-License-Identifier: Apache-2.0
"""What a folder says about what it generates with, checked once: ``genai_config.json``, or a file of ours.

onnxruntime-genai runs no encoder-decoder of texts, so that kind has a file of its own, in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcq.errors import InputError
from bcq.files.genai import context_length, special_tokens
from bcq.generation.sampling import is_integer

ENCODER_DECODER_FILE = "encoder_decoder_config.json"
_BEGIN = "decoder_start_token_id"
_USUAL_LENGTH = 512  # tokens of an answer for which nobody set a limit, where the configuration says none


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
    """Reads and checks the contents of such a file.

    Args:
        file: where they come from, for messages.
        config: the contents.
        session: of the same export; None where whoever runs it compares the vocabulary.

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
    if session is not None:
        _check_vocabulary(file, model["vocab_size"], session)
    search = config.get("search")
    shares = isinstance(search, dict) and search.get("past_present_share_buffer") is True
    return Described(model["context_length"], model["vocab_size"], frozenset(ends), shares)


def write_encoder_decoder(folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any]) -> None:
    """Writes ``encoder_decoder_config.json``.

    Args:
        folder: the export.
        config: contents of ``config.json`` with every default spelt out.
        generation: contents of ``generation_config.json``, or nothing; it wins.

    Raises:
        InputError: E102 when neither names the token that answers begin with.
    """
    tokens = special_tokens(config, generation)
    named = (generation.get(_BEGIN), config.get(_BEGIN), tokens.get("pad_token_id"))  # T5 begins with padding
    begin = next((token for token in named if token is not None), None)
    model = {
        "type": "encoder-decoder",
        "vocab_size": config["vocab_size"],
        "context_length": context_length(config) or _USUAL_LENGTH,
        **tokens,
        _BEGIN: begin,
    }
    begin_token(folder / "config.json", {"model": model})
    text = json.dumps({"model": model}, indent=2) + "\n"
    (folder / ENCODER_DECODER_FILE).write_text(text, encoding="utf-8")


def begin_token(file: Path, config: Mapping[str, Any]) -> int:
    """The token that answers begin with, of a configuration that `read_described` has checked.

    Raises:
        InputError: E102 when it is not a token id.
    """
    begin, most = config["model"].get(_BEGIN), config["model"]["vocab_size"] - 1
    if not is_integer(begin) or not 0 <= begin <= most:
        raise _wrong(file, _BEGIN, begin, f"a token id, 0 to {most}")
    return int(begin)


def _check_vocabulary(file: Path, vocabulary: int, session: Any) -> None:
    outputs = {value.name: value.shape for value in session.get_outputs()}
    if not outputs.get("logits"):
        raise InputError("E102", f"{file.parent}: the model has no output 'logits'.", "Export it again.")
    width = outputs["logits"][-1]
    if isinstance(width, int) and width != vocabulary:
        raise _wrong(file, "model.vocab_size", vocabulary, f"{width}, the width of the model's logits")


def _wrong(file: Path, key: str, got: object, expected: str) -> InputError:
    return InputError("E102", f"{file}: {key}: got {got!r}, expected {expected}.", "Export the model again.")
