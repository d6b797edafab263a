# SPDX-License-Identifier: Apache-2.0
"""Small graphs and weights for tests of the graph pass, and what they should compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from bcq import contract, passes
from bcq.bcq import BcqWeight, ceil_div, pack_bits
from bcq.packing import PackedWeight, pack, unpack
from bcq.passes import Left, MatrixRef, PackReport

Feeds = dict[str, NDArray[Any]]

# Functions compute in float32 the same products as NumPy, in another order. With K <= 100 terms of size 1 no
# partial sum exceeds 40, so each way rounds by at most 100 * 40 * 2^-24 and both differ by less than 5e-4.
# One wrong bit would change a result by 2 |alpha a|, about 0.5.
FLOAT32_TOLERANCE = 5e-4
# A float16 result is rounded once: half a unit in the last place is 2^-11 of the value.
FLOAT16_RELATIVE = 2.0**-11


def random_weight(
    rows: int, inputs: int, bits: int = 3, group_size: int = 32, offset: bool = False, seed: int = 0
) -> BcqWeight:
    """A weight of random bits and alphas; its values have the size of 1."""
    random = np.random.default_rng(seed)
    groups = ceil_div(inputs, group_size)
    scale = 2.0 ** -np.arange(1, bits + 1)[:, None, None]
    alpha = scale * random.uniform(0.5, 1.0, (bits, rows, groups))
    offsets = random.uniform(-0.5, 0.5, (rows, groups)).astype(np.float16) if offset else None
    words = pack_bits(random.integers(0, 2, (bits, rows, inputs)))
    return BcqWeight(words, alpha.astype(np.float16), offsets, inputs, group_size)


class Quick:
    """A weight source that needs no solver: signs of the residual and its mean size, two planes a row.

    Args:
        keep: reasons by name for matrices that stay dense.
    """

    def __init__(self, keep: dict[str, Left] | None = None) -> None:
        self.keep = keep or {}
        self.asked: list[MatrixRef] = []
        self.dense: dict[str, NDArray[np.float32]] = {}

    def identity(self, matrix: MatrixRef) -> str:
        """By content, as for a graph that carries its weights."""
        return f"{matrix.rows}x{matrix.inputs}:{matrix.read().tobytes().hex()}"

    def pack(self, matrix: MatrixRef) -> PackedWeight | Left:
        """Records who was asked for and what it decodes to."""
        self.asked.append(matrix)
        if matrix.name in self.keep:
            return self.keep[matrix.name]
        packed = pack(quick_weight(matrix.read()))
        self.dense[matrix.name] = unpack(packed).dequantize()
        return packed


def quick_weight(dense: NDArray[np.float32], bits: int = 2) -> BcqWeight:
    """Greedy planes, row-wise: enough to tell a right graph from a wrong one."""
    residual, planes, alphas = dense.copy(), [], []
    for _ in range(bits):
        signs = residual >= 0
        alpha = np.abs(residual).mean(axis=1, keepdims=True).astype(np.float16)
        residual = residual - np.where(signs, 1, -1) * alpha.astype(np.float32)
        planes.append(pack_bits(signs))
        alphas.append(alpha)
    return BcqWeight(np.stack(planes), np.stack(alphas), None, dense.shape[1], dense.shape[1])


def model_of(text: str, opset: int = 18, ir_version: int = 10, **constants: NDArray[Any]) -> ir.Model:
    """A model from ONNX's text form, ``graph (inputs) => (outputs) { nodes }``, with initializers added."""
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    proto = onnx.parser.parse_model(f"{header}\n{text}")
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    return ir.from_proto(proto)


def normal(*shape: int, seed: int = 1, dtype: Any = np.float32) -> NDArray[Any]:
    """Standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pack_with(model: ir.Model, source: Quick | None = None) -> tuple[PackReport, Quick]:
    """Runs the pass; the graph must still be valid."""
    source = source or Quick()
    report = passes.run(model, source)
    onnx.checker.check_model(ir.to_proto(model))
    return report, source


def op_types(model: ir.Model) -> list[str]:
    """Types of the nodes of the main graph, in order."""
    return [node.op_type for node in model.graph]


def run_without_library(model: ir.Model | Path, feeds: Feeds) -> list[NDArray[Any]]:
    """What stock ONNX Runtime computes: the operators are inlined as functions."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, feeds)]


def bcq_nodes(model: ir.Model) -> list[ir.Node]:
    """The operators that the pass put in."""
    return [node for node in model.graph if node.domain == contract.DOMAIN]
