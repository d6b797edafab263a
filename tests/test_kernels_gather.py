# SPDX-License-Identifier: Apache-2.0
"""The vector kernels of BcqGather: the bits of the scalar one for any factors, no write behind a row."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcq import contract
from bcq.kernels.core import Core, GatherProblem
from bcq.packing import PackedWeight, pack
from nodes import Array, random_weight
from not_finite import INPUTS, KINDS, poisoned_weight

CORE = Core.load()
VECTOR = [
    row.name
    for row in CORE.kernels(contract.GATHER.name)
    if row.name != "scalar" and not row.flags & ~CORE.detected_flags()
]


def both(kernel: str, indices: Array, weight: PackedWeight) -> tuple[Array, Array]:
    return CORE.gather(indices, weight, kernel=kernel), CORE.gather(indices, weight, kernel="scalar")


@pytest.mark.parametrize("kernel", VECTOR)
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 300),
    bits=st.integers(1, 8),
    group=st.sampled_from([32, 64, 96, 128, 512, 0]),
    offset=st.booleans(),
    dtype=st.sampled_from([np.int32, np.int64]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=150, deadline=None)
def test_any_row_has_the_bits_of_the_scalar_kernel(
    kernel: str, rows: int, inputs: int, bits: int, group: int, offset: bool, dtype: Any, seed: int
) -> None:
    weight = pack(random_weight(rows, inputs, bits, group or inputs, offset, seed))
    indices = np.random.default_rng(seed).integers(-rows, rows, 7).astype(dtype)
    y, expected = both(kernel, indices, weight)
    assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kernel", VECTOR)
@pytest.mark.parametrize("field", ["alpha_1", "alpha_rest", "offset"])
@pytest.mark.parametrize("value", [0.0, -0.0, 65504.0, 2.0**-24, -1.0, *KINDS])
def test_factors_of_any_kind_give_the_bits_of_the_scalar_kernel(
    kernel: str, field: str, value: float
) -> None:
    weight = pack(random_weight(40, 100, 3, 32, offset=True))
    getattr(weight, field)[...] = value
    y, expected = both(kernel, np.arange(-40, 40), weight)
    assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kernel", VECTOR)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("inputs", [INPUTS, 77])
def test_infinities_and_nans_of_both_signs_among_the_factors_give_the_bits_of_the_scalar_kernel(
    kernel: str, bits: int, inputs: int
) -> None:
    y, expected = both(kernel, np.arange(40), poisoned_weight(bits, inputs=inputs))
    assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kernel", VECTOR)
def test_negative_zeros_of_all_factors_give_the_bits_of_the_scalar_kernel(kernel: str) -> None:
    for offset in (False, True):
        weight = pack(random_weight(20, 64, 2, 32, offset))
        for tensor in (weight.alpha_1, weight.alpha_rest, weight.offset):
            if tensor is not None:
                tensor[...] = -0.0
        y, expected = both(kernel, np.arange(20), weight)
        assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kernel", VECTOR)
@pytest.mark.parametrize("inputs", [1, 31, 33, 64, 257])
def test_nothing_is_written_behind_the_last_row(kernel: str, inputs: int) -> None:
    weight = pack(random_weight(33, inputs, 3, 32 if inputs > 32 else inputs, offset=True))
    indices = np.array([32, -1, 0], np.int64)
    y = np.full(3 * inputs + 64, 7.0, np.float32)
    pointers = {name: t.ctypes.data if t.size else None for name, t in weight.tensors().items()}
    problem = GatherProblem(
        count=3,
        K=inputs,
        N=33,
        group_size=weight.group_size,
        bits=3,
        indices=indices.ctypes.data,
        y=y.ctypes.data,
        **pointers,
    )
    assert CORE.library.bcq_gather(ctypes.byref(problem), kernel.encode(), 1, None, None) is None
    assert (y[3 * inputs :] == 7.0).all()
    expected = CORE.gather(indices, weight, kernel="scalar")
    assert y[: 3 * inputs].tobytes() == expected.tobytes()


def test_this_cpu_takes_its_vector_kernel() -> None:
    if not VECTOR:
        pytest.skip("no vector kernel for this CPU")
    assert CORE.select_gather(flags=CORE.detected_flags()) == VECTOR[0]
