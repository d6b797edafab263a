# SPDX-License-Identifier: Apache-2.0
"""A packed model of 72 MB whose weights lie in an external data file, as exported models have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bcq import contract

PAGE = 4096
MATRICES = 4
ROWS, INPUTS, BITS, GROUP = 8192, 4096, 4, 128


def external(name: str, array: Any, data: Any, file_name: str) -> onnx.TensorProto:
    """Appends an array to the open data file at a page boundary and returns the tensor that refers to it."""
    data.seek(-data.tell() % PAGE, 1)
    tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    for key, value in (("location", file_name), ("offset", data.tell()), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    data.write(array.tobytes())
    return tensor


def write_big_model(folder: Path) -> tuple[Path, int]:
    """Matrices side by side on one activation, 72 MB in all; the model and the bytes of its weights."""
    random = np.random.default_rng(0)
    tiles, groups = ROWS // 16, INPUTS // GROUP
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "codes": (np.uint32, (tiles, INPUTS // 32, BITS, 16)),
        "alpha_1": (np.float16, (tiles, groups, 16)),
        "alpha_rest": (np.float16, (tiles, groups, BITS - 1, 16)),
        "offset": (np.float16, (0,)),
    }
    attributes = {
        "format_version": contract.FORMAT_VERSION,
        "layout": contract.LAYOUT,
        "bits": BITS,
        "K": INPUTS,
        "N": ROWS,
        "group_size": GROUP,
        "code_hash": "0" * 64,
        "accuracy_level": 0,
    }
    nodes, tensors, outputs, total = [], [], [], 0
    with (folder / "model.onnx.data").open("wb") as data:
        for i in range(MATRICES):
            for name, (dtype, shape) in shapes.items():
                size = int(np.prod(shape))
                array = random.bytes(size * 4) if dtype is np.uint32 else np.full(size, 0.01, dtype).tobytes()
                held = np.frombuffer(array, dtype).reshape(shape)
                tensors.append(
                    external(f"{name}{i}", held, data, "model.onnx.data")
                    if held.size
                    else onnx.numpy_helper.from_array(held, f"{name}{i}")
                )
                total += held.nbytes
            names = ["A", *(f"{name}{i}" for name in shapes)]
            nodes.append(helper.make_node("BcqMatMul", names, [f"Y{i}"], domain="bcq", **attributes))  # type: ignore[arg-type]
            outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT, None))
    first = helper.make_tensor_value_info("A", TensorProto.FLOAT, ["m", INPUTS])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("bcq", 1)]
    graph = helper.make_graph(nodes, "big", [first], outputs, tensors)
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path, total
