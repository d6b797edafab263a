# SPDX-License-Identifier: Apache-2.0
"""The operators under attack: a healthy one-node model of each, and what it computes in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bcq import contract
from bcq.packing import PackedWeight, pack, unpack
from nodes import among_planes, attributes, magnitudes, product, random_weight

Array = NDArray[Any]
Tensors = dict[str, Array]
NODE = "the_node"
OPSET = 21
# Small, ragged in rows and inputs, several groups, three planes and an offset: every tensor has elements.
WEIGHT = random_weight(50, 100, 3, 32, offset=True)


@dataclass(frozen=True)
class Subject:
    """One operator with valid attributes and tensors, ready to be damaged.

    Attributes:
        op: operator name; ``domain`` and ``version`` are its opset.
        title: what tells it from other subjects; the operator name where that is enough.
        attributes: all of its attributes.
        tensors: constant inputs by name, in order; ``first`` stands before them and is fed.
        feed: a healthy value of the first input.
        output_type: ONNX element type of the only output.
        answer: the right output in float64 and the error allowed, from feed, tensors and attributes.
    """

    op: str
    title: str
    domain: str
    version: int
    attributes: dict[str, Any]
    tensors: Tensors
    first: str
    feed: Array
    output_type: int
    answer: Callable[[Array, Tensors, dict[str, Any]], tuple[Array, Array]]

    def model(self) -> onnx.ModelProto:
        """A healthy model; dimensions of the first input but its last are dynamic for a matrix product."""
        node = helper.make_node(self.op, [self.first, *self.tensors], ["Y"], NODE, domain=self.domain)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in self.attributes.items())
        first_type = helper.np_dtype_to_tensor_dtype(self.feed.dtype)
        shape: list[Any] = ["m", *self.feed.shape[1:]]
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info(self.first, first_type, shape)],
            [helper.make_tensor_value_info("Y", self.output_type, None)],
            [numpy_helper.from_array(value, name) for name, value in self.tensors.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(self.domain, self.version)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _weight(tensors: Tensors, values: dict[str, Any]) -> PackedWeight:
    return PackedWeight(**tensors, inputs=values["K"], rows=values["N"], group_size=values["group_size"])


def _matmul(feed: Array, tensors: Tensors, values: dict[str, Any]) -> tuple[Array, Array]:
    weight = unpack(_weight(tensors, values))
    flat = feed.reshape(-1, feed.shape[-1])
    shape = (*feed.shape[:-1], weight.rows)
    # ops/README.md, level 0: 5e-4 of the magnitudes.
    return product(flat, weight).reshape(shape), 5e-4 * magnitudes(flat, weight).reshape(shape)


def _gather(feed: Array, tensors: Tensors, values: dict[str, Any]) -> tuple[Array, Array]:
    rows = unpack(_weight(tensors, values)).dequantize()[feed]
    return rows, np.zeros_like(rows)  # to the bit


def _nbits_weight(tensors: Tensors, values: dict[str, Any]) -> Array:
    low, high = tensors["B"] & 15, tensors["B"] >> 4
    quants = np.stack([low, high], axis=-1).reshape(*tensors["B"].shape[:2], -1).astype(np.float64)
    points = tensors["zero_points"].reshape(values["N"], -1)
    zero = np.stack([points & 15, points >> 4], axis=-1).reshape(values["N"], -1)[:, : quants.shape[1]]
    scales = tensors["scales"].reshape(values["N"], -1).astype(np.float64)
    dense = (quants - zero[..., None].astype(np.float64)) * scales[..., None]
    return np.asarray(dense.reshape(values["N"], -1)[:, : values["K"]])


def _nbits(feed: Array, tensors: Tensors, values: dict[str, Any]) -> tuple[Array, Array]:
    dense = _nbits_weight(tensors, values)
    a = feed.astype(np.float64)
    return a @ dense.T, 1e-2 * (np.abs(a) @ np.abs(dense).T) + 1e-6  # generous: its int8 path is none of ours


def _bcq(
    op: contract.Op, feed: Array, answer: Any, packed: PackedWeight | None = None, title: str = ""
) -> Subject:
    packed = packed or pack(WEIGHT)
    tensors: Tensors = dict(packed.tensors())
    return Subject(
        op=op.name,
        title=title or op.name,
        domain=contract.DOMAIN,
        version=contract.OPSET_VERSION,
        attributes=attributes(op, packed),
        tensors=tensors,
        first=op.inputs[0].name,
        feed=feed,
        output_type=TensorProto.FLOAT,
        answer=answer,
    )


def _activations() -> Array:
    return np.random.default_rng(3).standard_normal((2, 100)).astype(np.float32)


@cache
def matmul() -> Subject:
    """BcqMatMul with float32 activations."""
    return _bcq(contract.MATMUL, _activations(), _matmul)


@cache
def nested() -> Subject:
    """The same of format version 2: it reads two planes of codes that hold three."""
    packed = among_planes(random_weight(50, 100, 2, 32, offset=True), 3)
    return _bcq(contract.MATMUL, _activations(), _matmul, packed, "BcqMatMul nested")


@cache
def gather() -> Subject:
    """BcqGather with int64 indices."""
    return _bcq(contract.GATHER, np.array([[0, 49, -1], [-50, 7, 7]], np.int64), _gather)


@cache
def nbits() -> Subject:
    """ONNX Runtime's own operator for packed weights, 4 bits in blocks of 32 with zero points."""
    random = np.random.default_rng(4)
    tensors: Tensors = {
        "B": random.integers(0, 256, (32, 4, 16)).astype(np.uint8),
        "scales": random.uniform(0.01, 0.1, 128).astype(np.float32),
        "zero_points": random.integers(0, 256, 64).astype(np.uint8),
    }
    return Subject(
        op="MatMulNBits",
        title="MatMulNBits",
        domain="com.microsoft",
        version=1,
        attributes={"K": 128, "N": 32, "bits": 4, "block_size": 32, "accuracy_level": 0},
        tensors=tensors,
        first="A",
        feed=random.standard_normal((2, 128)).astype(np.float32),
        output_type=TensorProto.FLOAT,
        answer=_nbits,
    )


ALL = (matmul, gather, nested, nbits)
