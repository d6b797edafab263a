# SPDX-License-Identifier: Apache-2.0
"""Text in, token ids out: the tokenizer of a folder, and what a prompt may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcq.errors import InputError, ResourceError, UsageError
from bcq.generation.sampling import is_integer

TOKENIZER_FILE = "tokenizer.json"


def check_tokens(tokens: Sequence[int], vocabulary: int) -> list[int]:
    """Token ids as plain integers.

    Raises:
        UsageError: E202 when there is none, or one is not an id of the vocabulary.
    """
    if not isinstance(tokens, Sequence | np.ndarray) or np.ndim(tokens) != 1:
        raise UsageError("E202", f"prompt: got {type(tokens).__name__}, expected text or token ids.")
    if not len(tokens):
        raise UsageError("E202", "the prompt is empty, expected at least one token.")
    for token in tokens:
        if not is_integer(token) or not 0 <= token < vocabulary:
            raise UsageError(
                "E202",
                f"prompt: got token id {token!r}, expected 0 to {vocabulary - 1}"
                f" (the model has {vocabulary} tokens).",
            )
    return [int(token) for token in tokens]


def tokenize(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Token ids of a text; without `special` no token is added that the text does not name.

    Raises:
        UsageError: E202 when the text holds half of a surrogate pair, which no tokenizer takes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as fault:
        raise UsageError(
            "E202", f"prompt: got {text[fault.start]!a} at position {fault.start}, expected valid Unicode."
        ) from fault
    return list(tokenizer.encode(text, add_special_tokens=special).ids)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        InputError: E101 when there is none, E103 when it cannot be read.
        ResourceError: E603 when the package tokenizers is missing.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise InputError(
            "E101",
            f"{folder} has no {TOKENIZER_FILE}, so a text cannot become tokens.",
            "Pass token ids, or copy the model's tokenizer file there.",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as fault:
        raise ResourceError(
            "E603",
            "the package tokenizers is not installed; text needs it.",
            "pip install tokenizers, or pass ids.",
        ) from fault
    try:
        return Tokenizer.from_file(str(file))
    except Exception as fault:  # tokenizers raises the bare class
        raise InputError("E103", f"{file} cannot be read: {fault}.", "Copy it again.") from fault
