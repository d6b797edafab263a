# SPDX-License-Identifier: Apache-2.0
"""onnxruntime's MatMulNBits of 2 and 4 bits on its CUDA provider: a piece of tools/gpu_check.py.

One graph holds as many nodes as our chains have launches, each with weights of its own, so that what a run
costs to start hardly counts.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gpu_bench import GROUP, MATRICES, as_table, copies_of, device_name
from gpu_checks import demand
from gpu_pieces import Setting, Table

RUNS = 12
WARM = 3
LARGEST = 2e-3  # float16 sums of its kernels round more than ours


def random_matrix(N: int, K: int, bits: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """B uint8 ``[N, K/g, g*bits/8]`` and scales ``[N, K/g]`` of MatMulNBits."""
    random = np.random.default_rng(seed)
    packed = random.integers(0, 256, (N, K // GROUP, GROUP * bits // 8), dtype=np.uint8)
    scales = random.uniform(0.5, 1.5, (N, K // GROUP)) / 2**bits / 16
    return packed, scales.astype(np.float16)


def dequantized(
    packed: NDArray[np.uint8], scales: NDArray[np.float16], bits: int, device: str
) -> torch.Tensor:
    """W float64 ``[N, K]``: the lowest bits of a byte come first, 2^(bits-1) is zero."""
    shifts = torch.arange(0, 8, bits, device=device, dtype=torch.int32)
    codes = torch.from_numpy(packed).to(device).to(torch.int32)[..., None] >> shifts & (1 << bits) - 1
    values = codes.reshape(*packed.shape[:2], GROUP).double() - 2 ** (bits - 1)
    scale = torch.from_numpy(scales).to(device).double()
    return torch.mul(values, scale[..., None]).reshape(len(packed), -1)


def chain(N: int, K: int, bits: int, copies: int) -> tuple[bytes, torch.Tensor]:
    """A model of `copies` nodes, and the first one's W."""
    nodes, constants, outputs = [], [], []
    first = None
    for i in range(copies):
        packed, scales = random_matrix(N, K, bits, i)
        first = dequantized(packed, scales, bits, "cuda") if first is None else first
        constants.append(numpy_helper.from_array(packed, f"B{i}"))
        constants.append(numpy_helper.from_array(scales.reshape(-1), f"s{i}"))
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                ["A", f"B{i}", f"s{i}"],
                [f"Y{i}"],
                domain="com.microsoft",
                K=K,
                N=N,
                bits=bits,
                block_size=GROUP,
            )
        )
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT16, ["M", N]))
    inputs = [helper.make_tensor_value_info("A", TensorProto.FLOAT16, ["M", K])]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    assert first is not None
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(), first


def bind(session: Any, a: torch.Tensor, N: int) -> tuple[Any, list[torch.Tensor]]:
    """Inputs and outputs in PyTorch's memory on the device."""
    binding = session.io_binding()
    binding.bind_input("A", "cuda", 0, np.float16, list(a.shape), a.data_ptr())
    results = []
    for output in session.get_outputs():
        y = torch.empty(len(a), N, dtype=torch.float16, device="cuda")
        binding.bind_output(output.name, "cuda", 0, np.float16, [len(a), N], y.data_ptr())
        results.append(y)
    torch.cuda.synchronize()
    return binding, results


def one_time(N: int, K: int, M: int, bits: int) -> tuple[float, float]:
    """Microseconds of one product, and its relative error against float64."""
    model, first = chain(N, K, bits, copies_of(N * K * bits // 8, "cuda"))
    session = onnxruntime.InferenceSession(model, providers=["CUDAExecutionProvider"])
    demand("CUDAExecutionProvider" in session.get_providers(), "the CUDA provider was not loaded")
    a = torch.randn(M, K, device="cuda").half()
    binding, results = bind(session, a, N)
    times = []
    for _ in range(WARM + RUNS):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        times.append((time.perf_counter() - start) * 1e6 / len(results))
    exact = a.double() @ first.T
    error = float(torch.linalg.norm(results[0].double() - exact) / torch.linalg.norm(exact))
    demand(error < LARGEST, f"MatMulNBits {bits} bits M={M}: relative error {error:.2e}")
    return float(np.median(times[WARM:])), error


def measure(setting: Setting) -> tuple[str, list[Table]]:
    """The table of all products until the time is up; what onnxruntime refuses is told in its row."""
    rows = []
    for N, K in MATRICES:
        for bits in (2, 4):
            for M in (1, 4, 16, 64, 512):
                if setting.is_over():
                    break
                try:
                    micros, error = one_time(N, K, M, bits)
                    cells = (f"{micros:.1f}", f"{error:.1e}")
                except Exception as problem:  # another release may not have these kernels
                    cells = (f"not available: {' '.join(str(problem).split())[:80]}", "")
                rows.append((f"{N}x{K}", str(M), str(bits), *cells))
    title = (
        f"MatMulNBits of onnxruntime {onnxruntime.__version__} on {device_name('cuda')}: float16, blocks of "
        f"{GROUP}; wall-clock time of a run of a graph of such nodes, divided by their number."
    )
    return f"{len(rows)} rows", [
        as_table(title, ("N x K", "M", "bits", "us", "relative error"), rows, setting)
    ]
