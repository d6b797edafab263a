# SPDX-License-Identifier: Apache-2.0
"""MANIFEST.json: what is in an output folder and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

NAME = "MANIFEST.json"


def write_manifest(folder: Path, command: Sequence[str], seed: int) -> None:
    """Writes ``MANIFEST.json`` over all other files of ``folder``."""
    raise NotImplementedError
