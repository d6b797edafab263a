# SPDX-License-Identifier: Apache-2.0
"""Calibration text as batches of token ids, all of one length within a batch, so that nothing is padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.calibration.settings import MOST_TOKENS, CalibrationOptions
from bcq.calibration.texts import documents
from bcq.errors import InputError, UsageError

Ids = NDArray[np.int64]
BATCH_TOKENS = 2048  # what the activations of one block are computed for at a time
REFINE_TOKENS = 512  # the same where each batch is also one update of factors: many small ones learn more
LEAST_TOKENS = 32
_CHARACTERS = 32  # read for each token wanted: enough to spread windows over a text that is not huge
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length")


@dataclass(frozen=True)
class TokenBatches:
    """Token ids to calibrate on.

    Attributes:
        batches: int64 ``[windows, tokens]`` each.
        digest: SHA-256 over all ids and shapes.
    """

    batches: tuple[Ids, ...]
    digest: str

    @property
    def total(self) -> int:
        """How many tokens there are."""
        return sum(batch.size for batch in self.batches)


def read_tokens(
    folder: Path, config: Any, decoder: bool, widest: int, options: CalibrationOptions
) -> TokenBatches:
    """Reads, tokenizes and cuts the calibration text.

    Decoders get windows of equal length, spread evenly over the text, each document after the token that
    begins one; encoders get lines as their tokenizer encodes them.

    Args:
        folder: of the model, with its tokenizer.
        config: the model's transformers configuration.
        decoder: whether the model continues text.
        widest: largest K of its matrices; the default number of windows depends on it.
        options: text, number and length of windows.

    Raises:
        InputError: as :func:`bcq.calibration.texts.documents`; E101 without a tokenizer, E102 for a text that
            is too short, E103 for ids that the model does not have.
        UsageError: E202 for windows that are longer than the model's context.
    """
    from bcq.frontends.weightless import quiet

    tokenizer = load_tokenizer(folder)
    width = _width(config, tokenizer, options.calibration_tokens)
    count = options.windows(width, widest)
    texts = list(_limited(documents(options.calibrate), count * width * _CHARACTERS))
    with quiet():  # tokenizers warn about texts that are longer than the context
        if decoder:
            batches = _windows(tokenizer, texts, width, count, options)
        else:
            batches = _sentences(tokenizer, texts, width, count * width, options)
    largest, vocabulary = max(int(batch.max()) for batch in batches), int(config.vocab_size)
    if largest >= vocabulary:
        raise InputError(
            "E103", f"{folder}: its tokenizer gives the id {largest}, the model has {vocabulary} tokens."
        )
    return TokenBatches(tuple(batches), _digest(batches))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; nothing is fetched and no code of the folder runs.

    Raises:
        InputError: E101 when the folder has none that transformers can load.
    """
    from transformers import AutoTokenizer

    from bcq.frontends.weightless import quiet

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as fault:  # each tokenizer class fails in its own way when its files are missing
        reason = " ".join(str(fault).split())[:160]
        raise InputError(
            "E101",
            f"{folder} has no tokenizer that transformers can load ({reason}).",
            "Calibration needs it: copy tokenizer.json and tokenizer_config.json of the model there.",
        ) from fault


def _width(config: Any, tokenizer: Any, asked: int | None) -> int:
    """Tokens a window."""
    limits = [int(getattr(config, name)) for name in _CONTEXTS if getattr(config, name, None)]
    if "roberta" in str(config.model_type) and limits:  # its positions begin behind the padding id
        limits = [limit - int(config.pad_token_id) - 1 for limit in limits]
    context = min([*limits, int(tokenizer.model_max_length)])
    if asked is not None and asked > context:
        raise UsageError(
            "E202", f"--calibration-tokens: got {asked}, expected at most {context}, the model's context."
        )
    return asked or min(context, MOST_TOKENS)


def _limited(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _windows(
    tokenizer: Any, texts: list[str], width: int, count: int, options: CalibrationOptions
) -> list[Ids]:
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    start = [] if begin is None else [begin]
    ids = [token for text in texts for token in (*start, *tokenizer.encode(text, add_special_tokens=False))]
    _check_enough(len(ids), options)
    width = min(width, len(ids))
    whole = len(ids) // width
    rows = np.asarray(ids[: whole * width], np.int64).reshape(whole, width)
    return _batched(rows[_spread(whole, count)], options)


def _sentences(
    tokenizer: Any, texts: list[str], width: int, wanted: int, options: CalibrationOptions
) -> list[Ids]:
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    rows = [row for row in _encoded(tokenizer, lines, width) if row]
    total = sum(map(len, rows))
    _check_enough(total, options)
    chosen = [rows[index] for index in _spread(len(rows), -(-len(rows) * wanted // total))]
    lengths = sorted({len(row) for row in chosen})
    return [
        batch
        for length in lengths
        for batch in _batched(np.asarray([row for row in chosen if len(row) == length], np.int64), options)
    ]


def _encoded(tokenizer: Any, lines: Sequence[str], width: int) -> Iterator[list[int]]:
    left = iter(lines)
    while some := list(islice(left, 1000)):
        yield from tokenizer(some, truncation=True, max_length=width, padding=False)["input_ids"]


def _check_enough(count: int, options: CalibrationOptions) -> None:
    if count < LEAST_TOKENS:
        raise InputError(
            "E102",
            f"the text '{options.calibrate}' has {count} tokens, expected at least {LEAST_TOKENS}.",
            "Some ten thousand tokens of the kind that the model will see work well.",
        )


def _spread(available: int, count: int) -> NDArray[np.int64]:
    """At most ``count`` places, evenly over what is available."""
    return np.linspace(0, available - 1, min(count, available)).astype(np.int64)


def _batched(rows: Ids, options: CalibrationOptions) -> list[Ids]:
    step = max(1, (REFINE_TOKENS if options.refine else BATCH_TOKENS) // rows.shape[1])
    return [rows[begin : begin + step] for begin in range(0, len(rows), step)]


def _digest(batches: Sequence[Ids]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr(batch.shape).encode())
        digest.update(np.ascontiguousarray(batch, "<i8").data)
    return digest.hexdigest()
