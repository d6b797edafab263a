# SPDX-License-Identifier: Apache-2.0
"""An exported decoder, ready to generate without onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bcq.adapters.tasks import Task
from bcq.checks.external import check_file
from bcq.checks.model import check_model
from bcq.errors import UnsupportedError
from bcq.files.checkpoint import read_json
from bcq.files.genai import CONFIG_FILE
from bcq.files.inside import inner_file
from bcq.files.kinds import require_export
from bcq.generation.described import read_described
from bcq.generation.model import Model
from bcq.native.decoder import NativeDecoder, one_text
from bcq.precisions.files import MODEL_FILE, graph_file


class NativeModel(Model):
    """As `bcq.generation.model.Model`, for one text at a time and the base alone.

    Args:
        folder: what ``bcq export`` wrote.
        file: its graph.
        threads: that compute.
    """

    def __init__(self, folder: Path, file: Path, threads: int) -> None:
        config = folder / CONFIG_FILE
        described = read_described(config, read_json(config), None)
        self._open(folder, None, described, NativeDecoder(file, described.vocabulary, threads))

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        adapters: Sequence[Task] | None = None,
        max_new_tokens: int | None = 20,
        **options: object,
    ) -> list[str | list[int]]:
        """Is refused: the library runs one text at a time."""
        raise one_text()

    def logits(self, *arguments: object, **options: object) -> Any:
        """Is refused: caches stay in the library."""
        raise _only_in_a_session("logits")

    def empty_cache(self, batch: int = 1) -> dict[str, NDArray[Any]]:
        """Is refused: caches stay in the library."""
        raise _only_in_a_session("empty_cache")

    def _base_hash(self) -> str | None:
        return None  # adapters are values of slots, which only a session can be fed


def _only_in_a_session(method: str) -> UnsupportedError:
    return UnsupportedError(
        "E401",
        f"{method} needs onnxruntime: without it, caches stay in the library.",
        "Use bcq.load(folder), or bcq.native.library.OpenDecoder.",
    )


def load(folder: str | Path, *, threads: int = 1, bits: int | None = None) -> NativeModel:
    """Opens an exported decoder; onnxruntime is not imported.

    Args:
        folder: what ``bcq export`` wrote.
        threads: that compute; tokens are the same for any number.
        bits: the precision, for an export that serves several; None for its highest one.

    Raises:
        InputError: E101 for a missing folder, E102 for one that is no export, E103 for a damaged one, E108
            when its data lies where it must not.
        UnsupportedError: E401 when the folder is the export of something that is no decoder. What in a graph
            does not run here is found when generation starts.
        UsageError: E202 for `bits` that are not known.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file() or not (folder / MODEL_FILE).is_file():
        require_export(folder)
        raise UnsupportedError(
            "E401",
            f"{folder} holds no decoder (it has no {CONFIG_FILE}); nothing else runs without onnxruntime.",
            "Leave --native out.",
        )
    file = graph_file(folder, bits)
    inner_file(file, folder, "it is the model")
    check_file(file)
    check_model(file)
    return NativeModel(folder, file, threads)
