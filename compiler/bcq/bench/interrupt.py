# SPDX-License-Identifier: Apache-2.0
"""SIGTERM ends a bench as Ctrl-C does: by unwinding, so that its folders are removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 143  # 128 + SIGTERM, as shells count


@contextmanager
def unwound_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit(143) in the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the unwinding short
    raise SystemExit(TERMINATED)
