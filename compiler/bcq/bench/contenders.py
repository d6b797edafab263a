# SPDX-License-Identifier: Apache-2.0
"""Models of equal nodes that read distinct weights: BcqMatMul, and what onnxruntime itself offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bcq import contract
from bcq.bcq import BcqWeight, ceil_div, pack_bits
from bcq.packing import PackedWeight, pack

IR_VERSION = 10
OPSET = 21
ALIGNMENT = 4096
MICROSOFT = "com.microsoft"

# What each class of arithmetic may be off, relative to float64 (root mean square over the outputs).
FLOAT_ERROR = 1e-5  # float32 sums
NEAR_EXACT_ERROR = 1e-4  # ops/README.md, accuracy_level 0
INT8_ERROR = 3e-2  # int8 activations; this class is usually at about 1e-2


@dataclass(frozen=True)
class Weights:
    """One node's weights.

    Attributes:
        tensors: initializers of the node, in input order.
        dense: float32 ``[N, K]`` that they stand for.
    """

    tensors: dict[str, NDArray[Any]]
    dense: Callable[[], NDArray[np.float32]]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Contender:
    """One way to multiply.

    Attributes:
        name: as tables show it.
        op: operator type.
        domain: operator domain.
        bits: per weight, scales not counted.
        attributes: of each node.
        error: largest relative error that its class of arithmetic may have.
        draw: makes the weights of one node from a random generator.
    """

    name: str
    op: str
    domain: str
    bits: int
    attributes: Callable[[Weights], dict[str, Any]]
    error: float
    draw: Callable[[np.random.Generator], Weights]


def bcq(rows: int, inputs: int, bits: int, group_size: int) -> Contender:
    """BcqMatMul at q = ``bits``; a group size of 0 is row-wise."""
    group = group_size or inputs

    def draw(random: np.random.Generator) -> Weights:
        weight = random_bcq(random, rows, inputs, bits, group)
        return Weights(dict(pack(weight).tensors()), weight.dequantize)

    def attributes(weights: Weights) -> dict[str, Any]:
        packed = PackedWeight(**weights.tensors, inputs=inputs, rows=rows, group_size=group)
        return {
            "format_version": contract.FORMAT_VERSION,
            "layout": contract.LAYOUT,
            "bits": bits,
            "K": inputs,
            "N": rows,
            "group_size": group,
            "code_hash": packed.code_hash(),
            "accuracy_level": 0,
        }

    name = f"BcqMatMul q={bits} g={group_size or 'row'}"
    return Contender(name, contract.MATMUL.name, contract.DOMAIN, bits, attributes, NEAR_EXACT_ERROR, draw)


def random_bcq(random: np.random.Generator, rows: int, inputs: int, bits: int, group: int) -> BcqWeight:
    """Random planes with alphas that halve from plane to plane, about as solved ones do."""
    shape = (bits, rows, ceil_div(inputs, group))
    alpha = random.uniform(0.5, 1.0, shape) * 0.02 * 0.5 ** np.arange(bits)[:, None, None]
    words = pack_bits(random.integers(0, 2, (bits, rows, inputs), dtype=np.uint8))
    return BcqWeight(words, alpha.astype(np.float16), None, inputs, group)


def dense(rows: int, inputs: int) -> Contender:
    """MatMul on float32 weights."""

    def draw(random: np.random.Generator) -> Weights:
        weight = random.standard_normal((inputs, rows), dtype=np.float32)
        return Weights({"B": weight}, lambda: weight.T)

    return Contender("MatMul fp32", "MatMul", "", 32, lambda _: {}, FLOAT_ERROR, draw)


def nbits(rows: int, inputs: int, bits: int, block: int = 128) -> Contender:
    """MatMulNBits of onnxruntime with int8 activations (accuracy_level 4)."""
    blocks = ceil_div(inputs, block)

    def draw(random: np.random.Generator) -> Weights:
        codes = random.integers(0, 256, (rows, blocks, block * bits // 8), dtype=np.uint8)
        scales = random.uniform(0.5, 1.0, (rows, blocks)).astype(np.float32) * np.float32(0.02)
        tensors = {"B": codes, "scales": scales.reshape(-1)}
        return Weights(tensors, lambda: _dequantize(codes, scales, bits)[:, :inputs])

    values = {"K": inputs, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 4}
    return Contender(
        f"MatMulNBits {bits}-bit b={block}",
        "MatMulNBits",
        MICROSOFT,
        bits,
        lambda _: values,
        INT8_ERROR,
        draw,
    )


def _dequantize(codes: NDArray[np.uint8], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """(code - 2^(bits - 1)) * scale; the first code of a byte is in its low bits; ``[N, K]``."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    levels = (codes[..., None] >> shifts) & np.uint8(2**bits - 1)
    centred = levels.reshape(*codes.shape[:2], -1).astype(np.float32) - np.float32(2 ** (bits - 1))
    return np.asarray((centred * scales[..., None]).reshape(codes.shape[0], -1))


def write_model(contender: Contender, copies: list[Weights], inputs: int, rows: int, folder: Path) -> Path:
    """Writes a model of one node per copy, all reading the input ``A [M, K]`` and writing ``Y0``, ``Y1``...

    Weights are external data at multiples of 4096 bytes, so that they can be mapped.
    """
    path = folder / "model.onnx"
    nodes, initializers = [], []
    with (folder / "model.data").open("wb") as data:
        for i, weights in enumerate(copies):
            names = [f"{name}_{i}" for name in weights.tensors]
            initializers += [
                _external(data, name, tensor)
                for name, tensor in zip(names, weights.tensors.values(), strict=True)
            ]
            node = helper.make_node(contender.op, ["A", *names], [f"Y{i}"], domain=contender.domain)
            node.attribute.extend(
                helper.make_attribute(key, value) for key, value in contender.attributes(weights).items()
            )
            nodes.append(node)
    outputs = [
        helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT, ["M", rows]) for i in range(len(copies))
    ]
    a = helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", inputs])
    graph = helper.make_graph(nodes, "bench", [a], outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    if contender.domain:
        opsets.append(helper.make_opsetid(contender.domain, 1))
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), str(path))
    return path


def _external(data: Any, name: str, tensor: NDArray[Any]) -> onnx.TensorProto:
    """Appends a tensor to the data file; an empty one stays inside the model."""
    proto = onnx.TensorProto(name=name, dims=tensor.shape)
    proto.data_type = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    if tensor.nbytes == 0:
        proto.raw_data = b""
        return proto
    data.write(b"\0" * (-data.tell() % ALIGNMENT))
    proto.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": Path(data.name).name, "offset": data.tell(), "length": tensor.nbytes}
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))
    data.write(np.ascontiguousarray(tensor).data)
    return proto
