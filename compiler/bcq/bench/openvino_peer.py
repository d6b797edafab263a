# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's product with 4-bit weights, where the package openvino is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from bcq.bcq import ceil_div
from bcq.bench.contender import Contender, Float32, Weights


def openvino_int4(rows: int, inputs: int, group: int = 128) -> Contender:
    """Symmetric 4-bit weights with one float16 scale per group, as NNCF writes them; int8 activations.

    Raises:
        ImportError: when openvino is not installed.
        ValueError: when the group size does not divide K.
    """
    importlib.import_module("openvino")
    if inputs % group:
        raise ValueError(f"K={inputs} is no multiple of its group of {group}")
    groups = ceil_div(inputs, group)

    def draw(random: np.random.Generator) -> Weights:
        codes = np.frombuffer(random.bytes(rows * inputs // 2), np.uint8).reshape(rows, groups, group // 2)
        scales = (random.uniform(0.5, 1.0, (rows, groups, 1)) * 0.02).astype(np.float16)

        def dense() -> Float32:
            levels = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, groups, group)
            return np.asarray(((levels.astype(np.float32) - 8) * scales.astype(np.float32)).reshape(rows, -1))

        return Weights({"codes": codes, "scales": scales}, dense)

    def prepare(copies: list[Weights], folder: Path) -> OpenVinoModel:
        return OpenVinoModel(copies, rows, inputs, group)

    return Contender(f"OpenVINO 4-bit g={group}", "openvino", 4, "int8", draw, prepare, spins=True)


class OpenVinoModel:
    """One MatMul per copy; see `bcq.bench.contender.Model`."""

    def __init__(self, copies: list[Weights], rows: int, inputs: int, group: int) -> None:
        self._openvino: Any = importlib.import_module("openvino")
        self._group = group
        self._ops: Any = self._openvino.opset13
        a = self._ops.parameter([-1, inputs], np.float32, name="A")
        self._codes = [weights.tensors["codes"] for weights in copies]  # constants share their memory
        nodes = [self._node(a, weights, [rows, inputs // group, group]) for weights in copies]
        self._model = self._openvino.Model([self._ops.result(node) for node in nodes], [a], "bench")

    def _node(self, a: Any, weights: Weights, shape: list[int]) -> Any:
        ops, types = self._ops, self._openvino.Type
        codes = self._openvino.Tensor(weights.tensors["codes"].reshape(-1), shape, types.u4)
        levels = ops.convert(ops.constant(codes, shared_memory=True), np.float16)
        centred = ops.subtract(levels, ops.constant(np.full((1, 1, 1), 8, np.float16)))
        grouped = ops.multiply(centred, ops.constant(weights.tensors["scales"]))
        matrix = ops.reshape(grouped, np.array([shape[0], shape[1] * shape[2]], np.int64), False)
        return ops.matmul(a, ops.convert(matrix, np.float32), False, True)

    def session(self, a: Float32, threads: int) -> OpenVinoSession:
        """Compiles it for activations of this shape."""
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": self._group,
        }
        return OpenVinoSession(self._openvino.Core().compile_model(self._model, "CPU", config), a, self)


class OpenVinoSession:
    """An infer request; see `bcq.bench.contender.Session`."""

    def __init__(self, compiled: Any, a: Float32, model: OpenVinoModel) -> None:
        self._keep = (compiled, a, model)  # the request reads their memory
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(importlib.import_module("openvino").Tensor(a, shared_memory=True))

    def run(self) -> None:
        """One inference."""
        self._request.start_async()
        self._request.wait()

    def output(self, copy: int) -> Float32:
        """Output of one copy."""
        y: Float32 = self._request.get_output_tensor(copy).data
        return y
