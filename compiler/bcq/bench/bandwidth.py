# SPDX-License-Identifier: Apache-2.0
"""How fast this machine reads memory, in the same minutes as the kernels."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BUFFER_BYTES = 192 * 2**20  # several times any last-level cache of the machines that this is meant for
GIGA = 1e9


class ReadBandwidth:
    """Reads one large buffer with several threads, and keeps the fastest pass.

    The reader is NumPy's maximum over bytes, which is vectorized, computes little and releases the
    interpreter lock; the figure is a lower bound of what the memory can give.

    Args:
        threads: number of threads that share the buffer.
    """

    def __init__(self, threads: int) -> None:
        self._shares = np.array_split(np.ones(BUFFER_BYTES, np.uint8), threads)
        self._pool = ThreadPoolExecutor(threads)
        self.best = 0.0

    def measure(self) -> float:
        """One pass.

        Returns:
            GB/s of this pass; the highest so far is kept in ``best``.
        """
        begin = time.perf_counter()
        list(self._pool.map(np.max, self._shares))
        rate = BUFFER_BYTES / (time.perf_counter() - begin) / GIGA
        self.best = max(self.best, rate)
        return rate

    def close(self) -> None:
        """Ends the threads and gives the buffer back."""
        self._pool.shutdown()
        self._shares = []
