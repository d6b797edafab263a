# SPDX-License-Identifier: Apache-2.0
"""Matrix products on one thread of the library, so that their bits do not depend on how many it may use.

A BLAS that splits a float32 product among threads sums its edges in another order. Matrices do not depend on
each other: solving several at a time uses the cores better.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_users = 0
_limits: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limits BLAS to one thread, process-wide, until the last of nested or concurrent users is done."""
    global _users, _limits  # the setting is one of the process
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has no annotations

    with _lock:
        if _users == 0:
            _limits = threadpool_limits(1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limits.restore_original_limits()
                _limits = None
