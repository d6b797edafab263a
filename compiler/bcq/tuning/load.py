# SPDX-License-Identifier: Apache-2.0
"""Models for tuning: a base with packed layers, a dense teacher, and what their configurations say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import bcq.nn  # teaches transformers to load a base
from bcq.errors import UsageError
from bcq.files.base import QuantizedBase
from bcq.files.checkpoint import Checkpoint
from bcq.frontends.architectures import Architecture, architecture_of
from bcq.frontends.weightless import quiet, without_pooler

assert bcq.nn.METHOD  # used by being imported


def load_packed(base: QuantizedBase, architecture: Architecture) -> Any:
    """The model of a base with packed layers, in evaluation mode: nothing is dropped."""
    return _load(base.folder, architecture)


def load_dense(folder: Path) -> Any:
    """A dense model of a local folder, float32 and frozen.

    Raises:
        InputError: E101 to E105 as `Checkpoint.open`.
        UnsupportedError: E401 for an architecture that is not known.
    """
    return _load(folder, architecture_of(Checkpoint.open(folder).config)).requires_grad_(False)


def context_of(config: Any) -> int:
    """Most tokens that the model takes."""
    context = getattr(config, "max_position_embeddings", None)
    return int(context) if isinstance(context, int) and context > 1 else 1024


def end_of(base: QuantizedBase, config: Any) -> int:
    """The token that ends a text.

    Raises:
        UsageError: E202 when the configuration names none.
    """
    end = config.eos_token_id
    end = end[0] if isinstance(end, list) and end else end
    if not isinstance(end, int):
        raise UsageError("E202", f"{base.folder}/config.json: eos_token_id: got {end!r}, expected a token.")
    return end


def _load(folder: Path, architecture: Architecture) -> Any:
    found = getattr(transformers, architecture.class_name)
    with quiet(), _no_bars():
        model = found.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, **without_pooler(architecture.class_name)
        )
    return model.eval()


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """No progress bars of transformers inside the block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
