# SPDX-License-Identifier: Apache-2.0
"""Graphs with MatMulNBits nodes, packed number by number from the operator's schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from foreign import Grid, stream

Feeds = dict[str, NDArray[Any]]


def octets(values: Any, bits: int, size: int) -> list[int]:
    """Fields of `bits` bits as `size` bytes, the first in the lowest bits."""
    whole = b"".join(word.to_bytes(4, "little") for word in stream(values, bits))
    return list((whole + bytes(size))[:size])


def tensors(grid: Grid, zeros: str = "packed") -> dict[str, NDArray[Any]]:
    """The inputs of a node but A.

    Args:
        grid: the matrix.
        zeros: ``"packed"``, ``"flat"`` (packed, one axis), ``"float"`` or ``"absent"``.
    """
    rows, inputs = grid.levels.shape
    block, bits = grid.group_size, grid.bits
    blocks = -(-inputs // block)
    padded = np.pad(grid.levels, ((0, 0), (0, blocks * block - inputs)), constant_values=1)
    size = block * bits // 8
    stored = [[octets(row[b * block : (b + 1) * block], bits, size) for b in range(blocks)] for row in padded]
    made = {"B": np.array(stored, np.uint8), "scales": grid.scales}
    if zeros == "float":
        made["zero_points"] = grid.zeros.astype(grid.scales.dtype)
    elif zeros != "absent":
        packed = np.array([octets(row, bits, -(-blocks * bits // 8)) for row in grid.zeros], np.uint8)
        made["zero_points"] = packed.reshape(-1) if zeros == "flat" else packed
    assert made["B"].shape == (rows, blocks, size)
    return made


def model(grid: Grid, zeros: str = "packed", bias: bool = False, **changes: Any) -> onnx.ModelProto:
    """Y = Relu(A W^T + bias), A of shape [tokens, K].

    Args:
        grid: the matrix.
        zeros: as `tensors`.
        bias: whether the node adds one.
        changes: attributes of the node that differ; None leaves one out.
    """
    rows, inputs = grid.levels.shape
    parts = tensors(grid, zeros)
    dtype = helper.np_dtype_to_tensor_dtype(grid.scales.dtype)
    names = ["A", "B", "scales", "zero_points" if "zero_points" in parts else ""]
    if bias:
        parts["bias"] = np.linspace(-1, 1, rows).astype(grid.scales.dtype)
        names += ["", "bias"]
    attributes = {"K": inputs, "N": rows, "bits": grid.bits, "block_size": grid.group_size, **changes}
    attributes = {name: value for name, value in attributes.items() if value is not None}
    while not names[-1]:
        names.pop()
    nodes = [
        helper.make_node(
            "MatMulNBits", names, ["X"], "/h.0/fc/MatMul_Q4", domain="com.microsoft", **attributes
        ),
        helper.make_node("Relu", ["X"], ["Y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("A", dtype, ["tokens", inputs])],
        [helper.make_tensor_value_info("Y", dtype, ["tokens", rows])],
        [numpy_helper.from_array(array, name) for name, array in parts.items()],
        value_info=[helper.make_tensor_value_info("X", dtype, ["tokens", rows])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Writes a model; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path)
    return path


def feeds(grid: Grid, tokens: int = 5) -> Feeds:
    """Seeded activations of the size of 1."""
    random = np.random.default_rng(7)
    return {"A": random.standard_normal((tokens, grid.levels.shape[1])).astype(grid.scales.dtype)}


def run(path: Path, given: Feeds) -> NDArray[Any]:
    """What ONNX Runtime without our library computes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, given)[0])


def normal(*shape: int) -> NDArray[np.float32]:
    """Standard normal values."""
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)
