# SPDX-License-Identifier: Apache-2.0
"""How fast this machine reads memory, in the same minutes as the kernels: the roof over them."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

from bcq.errors import ResourceError
from bcq.kernels.core import Core

BUFFER_BYTES = 192 * 2**20  # several times any last-level cache of the machines that this is meant for
GIGA = 1e9


class ReadBandwidth:
    """Reads one large buffer with several threads; the library's reader does it (``bcq_read_bytes``).

    The buffer asks for huge pages: this is what the memory gives, whatever pages weights lie in.

    Args:
        threads: number of threads that share the buffer.
        size: bytes of the buffer, a multiple of 64 times ``threads``.

    Raises:
        ResourceError: E603 when the library is too old to have the reader.
    """

    def __init__(self, threads: int, size: int = BUFFER_BYTES) -> None:
        self._read = reader(Core.load())
        self._size = size
        self._buffer = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._buffer.madvise(mmap.MADV_HUGEPAGE)
        words = np.frombuffer(self._buffer, np.uint8)
        words[:] = 1  # an untouched page is the one page of zeros, and lies in cache
        share = size // threads
        self._shares = [(words.ctypes.data + i * share, share) for i in range(threads)]
        self._pool = ThreadPoolExecutor(threads)
        self.rates: list[float] = []

    def measure(self) -> float:
        """One pass.

        Returns:
            GB/s of this pass, also kept in ``rates``.
        """
        begin = time.perf_counter()
        list(self._pool.map(lambda share: self._read(*share), self._shares))
        rate = self._size / (time.perf_counter() - begin) / GIGA
        self.rates.append(rate)
        return rate

    @property
    def median(self) -> float:
        """GB/s of the median pass."""
        return median(self.rates)

    @property
    def best(self) -> float:
        """GB/s of the fastest pass."""
        return max(self.rates)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()


def reader(core: Core) -> Callable[[int, int], int]:
    """The library's ``bcq_read_bytes(address, bytes)``; the interpreter lock is free while it runs.

    Raises:
        ResourceError: E603 when the library has none.
    """
    function = getattr(core.library, "bcq_read_bytes", None)
    if function is None:
        raise ResourceError(
            "E603",
            f"{core.path}: this library has no bcq_read_bytes, it is older than this package.",
            "Reinstall the package, or run 'make build' in the checkout.",
        )
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    function.restype = ctypes.c_uint64
    read: Callable[[int, int], int] = function
    return read
