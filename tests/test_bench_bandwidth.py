# SPDX-License-Identifier: Apache-2.0
"""The memory reader behind the bench: it reads every byte, and rates follow their formula."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from bcq.bench.bandwidth import ReadBandwidth, reader
from bcq.errors import ResourceError
from bcq.kernels.core import Core


@pytest.mark.parametrize("size", [0, 63, 64, 6 * 64, 12 * 64, 13 * 64 + 40, 100_000])
def test_the_reader_reads_each_whole_line_once(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    words = data[: size // 64 * 64].view(np.uint64)
    assert reader(Core.load())(data.ctypes.data, size) == int(words.sum(dtype=np.uint64))


def test_each_pass_has_a_rate_and_the_best_is_the_highest() -> None:
    bandwidth = ReadBandwidth(threads=2, size=2**16)
    rates = [bandwidth.measure() for _ in range(3)]
    bandwidth.close()
    assert bandwidth.rates == rates
    assert bandwidth.best == max(rates) >= bandwidth.median >= min(rates) > 0


def test_a_library_without_the_reader_is_named() -> None:
    core = Core(Path("old.so"), ctypes.CDLL(None))
    with pytest.raises(ResourceError, match=r"old\.so.*bcq_read_bytes") as caught:
        reader(core)
    assert caught.value.code == "E603"
