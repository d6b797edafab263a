# SPDX-License-Identifier: Apache-2.0
"""The AVX-512 kernel on CPUs without AVX-512: emulated instruction by instruction, against the oracle."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

from bcq.core import Core
from bcq.packing import pack
from native_builds import emulated_library
from nodes import activations, product, random_weight

KERNEL = "avx512_t16"
NEAR_EXACT = 1e-4  # ops/README.md, accuracy_level 0: relative root mean square error

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86 kernel")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Core:
    library = emulated_library(tmp_path_factory.mktemp("emulated"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BCQ_LIBRARY", str(library))
        return Core.load()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_emulated_kernel_agrees_with_float64_for_all_tails(emulated: Core, bits: int, dtype: Any) -> None:
    # A float16 result is rounded once more, by at most 2^-11 of itself.
    limit = NEAR_EXACT if dtype == np.float32 else 2**-11
    for rows, inputs, group in ((16, 32, 32), (50, 100, 32), (33, 257, 96), (70, 416, 128), (17, 300, 300)):
        weight = random_weight(rows, inputs, bits, group, offset=True)
        a = activations(6, inputs, dtype)
        exact = product(a, weight)
        error = emulated.matmul(a, pack(weight), kernel=KERNEL) - exact
        assert np.linalg.norm(error) <= limit * np.linalg.norm(exact), (rows, inputs, group)


def test_the_emulated_kernel_gives_a_row_alone_the_bits_that_it_has_in_a_batch(emulated: Core) -> None:
    weight = pack(random_weight(40, 416, 3, 128, offset=True))
    a = activations(21, 416)
    batch = emulated.matmul(a, weight, kernel=KERNEL)
    alone = [emulated.matmul(row[None], weight, kernel=KERNEL)[0] for row in a]
    assert np.stack(alone).tobytes() == batch.tobytes()


def test_the_emulated_kernel_keeps_a_poisoned_row_to_itself(emulated: Core) -> None:
    weight = pack(random_weight(40, 300, 3, 64))
    a = activations(5, 300)
    clean = emulated.matmul(a, weight, kernel=KERNEL)
    a[2, 17] = np.nan
    y = emulated.matmul(a, weight, kernel=KERNEL)
    assert np.isnan(y[2]).all()
    assert np.delete(y, 2, axis=0).tobytes() == np.delete(clean, 2, axis=0).tobytes()


def test_the_largest_signed_sums_do_not_wrap(emulated: Core) -> None:
    # Equal magnitudes make every quad reach the end of the table's range, for both signs.
    weight = pack(random_weight(32, 128, 2, 128))
    for a in (np.full((1, 128), 3.0, np.float32), np.full((1, 128), -3.0, np.float32)):
        exact = product(a, random_weight(32, 128, 2, 128))
        assert (
            np.abs(emulated.matmul(a, weight, kernel=KERNEL) - exact).max()
            <= NEAR_EXACT * np.abs(exact).max()
        )
