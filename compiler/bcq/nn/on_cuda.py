# SPDX-License-Identifier: Apache-2.0
"""Y = X W^T by the CUDA kernels, on tensors of PyTorch and on its current stream."""

from __future__ import annotations

from functools import cache

import torch

from bcq.errors import ResourceError
from bcq.kernels.cuda import Cuda, CudaWeight
from bcq.nn.decode import Factors, Shape

# Up to so many rows of X the kernels are taken; above, weights are decoded for a dense product. By counts of
# instructions, not measured: float32 runs two rows at a time.
MOST_ROWS = {torch.float16: 64, torch.bfloat16: 64, torch.float32: 8}


def kernels_for(x: torch.Tensor) -> Cuda | None:
    """The library, where it is there and has a kernel for so many rows of this type on this device."""
    wanted = x.device.type == "cuda" and 0 < len(x) <= MOST_ROWS.get(x.dtype, 0)
    return _usable(x.device) if wanted else None


def launch(cuda: Cuda, x: torch.Tensor, codes: torch.Tensor, factors: Factors, shape: Shape) -> torch.Tensor:
    """Puts the product on the current stream.

    Args:
        cuda: the library.
        x: ``[M, K]``; float32, float16 or bfloat16.
        codes: uint32 ``[T, C, q, 16]`` on the same device, as are the factors.
        factors: float16.
        shape: N, K, q, g.

    Returns:
        ``[M, N]`` of the type of ``x``.

    Raises:
        ValueError: when the launch fails.
    """
    rows_apart = x.stride(-1) == 1 and x.stride(0) >= shape.inputs  # an expanded row has the stride 0
    x = x if rows_apart else x.contiguous()
    held = (codes.contiguous(), factors.alpha_1.contiguous(), factors.alpha_rest.contiguous())
    offset = None if factors.offset is None else factors.offset.contiguous()
    y = x.new_empty(len(x), shape.rows)
    weight = CudaWeight(
        codes=held[0].data_ptr(),
        alpha_1=held[1].data_ptr(),
        alpha_rest=held[2].data_ptr() if shape.bits > 1 else None,
        offset=None if offset is None else offset.data_ptr(),
        rows=shape.rows,
        inputs=shape.inputs,
        group_size=shape.group_size,
        bits=shape.bits,
    )
    with torch.cuda.device_of(x):
        cuda.matmul(
            weight,
            M=len(x),
            dtype=str(x.dtype).removeprefix("torch."),
            a=x.data_ptr(),
            a_stride=x.stride(0),
            y=y.data_ptr(),
            stream=int(torch.cuda.current_stream().cuda_stream) if x.is_cuda else 0,
        )
    return y


@cache
def _usable(device: torch.device) -> Cuda | None:
    """The library, unless it is missing or cannot run on this device."""
    try:
        cuda = Cuda.load()
    except ResourceError:
        return None
    with torch.cuda.device(device):
        return cuda if cuda.unavailable() is None else None
