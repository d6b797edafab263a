# SPDX-License-Identifier: Apache-2.0
"""torch's dynamically quantized linear product: int8 weights, activations quantized with one scale a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from bcq.bench.contender import Contender, Float32, Weights


def torch_int8(rows: int, inputs: int) -> Contender:
    """``torch.ops.quantized.linear_dynamic`` with one scale per output.

    Raises:
        ImportError: when torch is not installed, or has lost these operators.
    """
    import torch

    if not hasattr(torch.ops.quantized, "linear_dynamic") or torch.backends.quantized.engine == "none":
        raise ImportError("this torch has no dynamic int8 product")

    def draw(random: np.random.Generator) -> Weights:
        codes = np.frombuffer(random.bytes(rows * inputs), np.int8).reshape(rows, inputs)
        codes = np.maximum(codes, -127)
        scales = random.uniform(0.5, 1.0, rows).astype(np.float32) * np.float32(1e-3)
        return Weights({"codes": codes, "scales": scales}, lambda: codes.astype(np.float32) * scales[:, None])

    return Contender("torch int8 dynamic", "torch", 8, "int8", draw, TorchModel, spins=True)


class TorchModel:
    """Packed weights; see `bcq.bench.contender.Model`."""

    def __init__(self, copies: list[Weights], folder: Path) -> None:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that quantized tensors will go one day
            self._packed = [self._pack(torch, weights) for weights in copies]

    @staticmethod
    def _pack(torch: Any, weights: Weights) -> Any:
        codes, scales = weights.tensors["codes"], weights.tensors["scales"]
        zeros = torch.zeros(scales.size, dtype=torch.int64)
        per_row = torch._make_per_channel_quantized_tensor(
            torch.from_numpy(codes.copy()), torch.from_numpy(scales.astype(np.float64)), zeros, 0
        )
        return torch.ops.quantized.linear_prepack(per_row, None)

    def session(self, a: Float32, threads: int) -> TorchSession:
        """Binds activations."""
        return TorchSession(self._packed, a, threads)


class TorchSession:
    """Calls the product once per copy; see `bcq.bench.contender.Session`."""

    def __init__(self, packed: list[Any], a: Float32, threads: int) -> None:
        import torch

        self._torch = torch
        self._threads = threads
        self._packed = packed
        self._a = torch.from_numpy(a)
        self._outputs: list[Any] = []

    def run(self) -> None:
        """One product per copy."""
        if self._torch.get_num_threads() != self._threads:
            self._torch.set_num_threads(self._threads)
        product, a = self._torch.ops.quantized.linear_dynamic, self._a
        # reduce_range as in torch's own module: 7-bit activations, or sums of pairs overflow on AVX2
        self._outputs = [product(a, packed, reduce_range=True) for packed in self._packed]

    def output(self, copy: int) -> Float32:
        """The product with one copy."""
        y: Float32 = self._outputs[copy].numpy()
        return y
