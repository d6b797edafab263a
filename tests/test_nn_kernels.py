# SPDX-License-Identifier: Apache-2.0
"""PyTorch reaches the kernels: the CUDA ones on the emulated device, and both through one operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bcq.bcq import BcqWeight
from bcq.kernels.cuda import Cuda
from bcq.nn import PackedMatrix, on_cuda
from bcq.nn.decode import Factors
from bcq.packing import pack
from cuda_builds import emulated
from nodes import magnitudes, product, random_weight


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Cuda:
    return emulated(tmp_path_factory.getbasetemp() / "any")


def halves(matrix: PackedMatrix) -> Factors:
    """Factors as kernels take them."""
    offset = matrix.offset.detach().half() if matrix.offset.numel() else None
    return Factors(matrix.alpha_1.detach().half(), matrix.alpha_rest.detach().half(), offset)


def within_rounding(y: torch.Tensor, x: torch.Tensor, weight: BcqWeight, unit: float) -> bool:
    """Weights and results are rounded to the type of X, sums to float32."""
    exact, sizes = product(x.double().numpy(), weight), magnitudes(x.double().numpy(), weight)
    sums = (weight.inputs + 8) * 2.0**-24
    return bool((np.abs(y.double().numpy() - exact) <= unit * (np.abs(exact) + sizes) + sums * sizes).all())


@pytest.mark.parametrize(
    ("dtype", "unit", "rows"),
    [(torch.float32, 2.0**-23, 2), (torch.float16, 2.0**-11, 5), (torch.bfloat16, 2.0**-8, 3)],
)
@pytest.mark.parametrize(("bits", "offset"), [(1, False), (3, True)])
def test_cuda_kernels_take_tensors_as_they_lie(
    cuda: Cuda, dtype: torch.dtype, unit: float, rows: int, bits: int, offset: bool
) -> None:
    weight = random_weight(40, 200, bits, 64, offset)
    matrix = PackedMatrix.of(pack(weight))
    wide = torch.randn(rows, 2, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = wide[:, 0]  # rows lie apart
    y = on_cuda.launch(cuda, x, matrix.codes, halves(matrix), matrix.layout)
    assert y.dtype is dtype
    assert within_rounding(y, x, weight, unit)


def test_columns_that_lie_apart_are_copied_first(cuda: Cuda) -> None:
    weight = random_weight(17, 33, 2, 33)
    matrix = PackedMatrix.of(pack(weight))
    x = torch.randn(33, 2, generator=torch.Generator().manual_seed(0)).T
    y = on_cuda.launch(cuda, x, matrix.codes, halves(matrix), matrix.layout)
    assert within_rounding(y, x, weight, 2.0**-23)


def test_one_row_for_all_is_copied_first(cuda: Cuda) -> None:
    weight = random_weight(17, 70, 2, 32)
    matrix = PackedMatrix.of(pack(weight))
    row = torch.randn(1, 70, generator=torch.Generator().manual_seed(0))
    y = on_cuda.launch(cuda, row.expand(3, 70), matrix.codes, halves(matrix), matrix.layout)
    assert within_rounding(y, row.expand(3, 70), weight, 2.0**-23)


def test_tensors_on_a_cpu_are_not_for_cuda() -> None:
    assert on_cuda.kernels_for(torch.zeros(1, 32)) is None


def test_the_operator_is_what_layers_compute_and_torch_accepts_it() -> None:
    matrix = PackedMatrix.of(pack(random_weight(40, 200, 3, 64, offset=True)))
    factors, shape = halves(matrix), matrix.layout
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    given = (x, matrix.codes, factors.alpha_1, factors.alpha_rest, factors.offset)
    sizes = (shape.rows, shape.inputs, shape.group_size)
    with torch.no_grad():
        assert torch.equal(torch.ops.bcq.matmul(*given, *sizes), matrix.product(x))
    torch.library.opcheck(torch.ops.bcq.matmul, (*given, *sizes))
