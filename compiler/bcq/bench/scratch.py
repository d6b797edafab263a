# SPDX-License-Identifier: Apache-2.0
"""Temporary folders that go also when a signal comes in the middle of their making or removal."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder ``bcq-bench-...`` among the system's temporary ones, for as long as the block lasts.

    The name is known before the folder is made, so there is no moment in which it exists and nobody would
    remove it; a signal that interrupts the removal makes it begin again.
    """
    folder = Path(tempfile.gettempdir()) / f"bcq-bench-{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
