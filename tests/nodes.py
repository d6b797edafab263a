# SPDX-License-Identifier: Apache-2.0
"""Models of one BCQ node, and what the node must compute in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bcq import contract
from bcq.bcq import BcqWeight, ceil_div, pack_bits
from bcq.packing import PackedWeight, pack
from bcq.runtime import default_options, register_library

Array = NDArray[Any]
ELEMENT_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint32): TensorProto.UINT32,
}


def random_weight(
    rows: int, inputs: int, bits: int, group_size: int, offset: bool = False, seed: int = 0
) -> BcqWeight:
    """Random bits; alphas halve from plane to plane, as solved ones roughly do."""
    random = np.random.default_rng(seed)
    groups = ceil_div(inputs, group_size)
    alpha = random.uniform(0.5, 1.0, (bits, rows, groups)) * 0.5 ** np.arange(bits)[:, None, None]
    return BcqWeight(
        words=pack_bits(random.integers(0, 2, (bits, rows, inputs))),
        alpha=alpha.astype(np.float16),
        offset=random.normal(0, 0.2, (rows, groups)).astype(np.float16) if offset else None,
        inputs=inputs,
        group_size=group_size,
    )


def among_planes(weight: BcqWeight, planes: int, seed: int = 5) -> PackedWeight:
    """The weight packed in codes of more planes; those that it does not read have random bits."""
    others = random_weight(weight.rows, weight.inputs, planes - weight.bits, weight.inputs, seed=seed)
    codes = np.ascontiguousarray(np.concatenate([pack(weight).codes, pack(others).codes], axis=2))
    return replace(pack(weight), codes=codes)


def activations(rows: int, inputs: int, dtype: Any = np.float32, seed: int = 1) -> Array:
    """Standard normal values, ``[rows, inputs]``."""
    return np.random.default_rng(seed).standard_normal((rows, inputs)).astype(dtype)


def product(a: Array, weight: BcqWeight) -> NDArray[np.float64]:
    """A W^T in float64, from the oracle."""
    return np.asarray(a.astype(np.float64) @ weight.dequantize().astype(np.float64).T)


def magnitudes(a: Array, weight: BcqWeight) -> NDArray[np.float64]:
    """Sum of |a| (|alpha_1| + ... + |alpha_q| + |offset|) per output: what rounding is relative to."""
    group_of = np.arange(weight.inputs) // weight.group_size
    scale = np.abs(weight.alpha.astype(np.float64)).sum(axis=0)
    if weight.offset is not None:
        scale += np.abs(weight.offset.astype(np.float64))
    return np.asarray(np.abs(a.astype(np.float64)) @ scale[:, group_of].T)


def attributes(op: contract.Op, packed: PackedWeight) -> dict[str, Any]:
    """The attributes that the contract asks of a node."""
    everything = {
        "format_version": packed.format_version,
        "layout": contract.LAYOUT,
        "bits": packed.bits,
        "K": packed.inputs,
        "N": packed.rows,
        "group_size": packed.group_size,
        "code_hash": packed.code_hash(),
        "accuracy_level": 0,
    }
    return {name: everything[name] for name in op.attributes}


def one_node(
    op: contract.Op,
    weight: PackedWeight | BcqWeight,
    first: Any = np.float32,
    dims: tuple[Any, ...] = ("batch", "sequence"),
    *,
    fed: tuple[str, ...] = (),
    tensors: dict[str, Array | None] | None = None,
    change: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    """A model that holds one BCQ node named ``the_node``.

    Args:
        op: BcqMatMul or BcqGather.
        weight: what the node reads.
        first: element type of its first input.
        dims: leading dimensions of the first input of BcqMatMul, all dimensions of the indices of BcqGather.
        fed: names of weight tensors that are graph inputs instead of constants.
        tensors: weight tensors to replace.
        change: attributes to replace; None takes one away.
    """
    packed = pack(weight) if isinstance(weight, BcqWeight) else weight
    held = {**packed.tensors(), **(tensors or {})}
    values = {**attributes(op, packed), **(change or {})}
    node = helper.make_node(
        op.name,
        [port.name for port in op.inputs],
        ["Y"],
        name="the_node",
        domain=contract.DOMAIN,
    )
    node.attribute.extend(helper.make_attribute(k, v) for k, v in values.items() if v is not None)
    shape = [*dims, packed.inputs] if op.name == contract.MATMUL.name else [*dims]
    first_type = ELEMENT_TYPES[np.dtype(first)]
    out_type = first_type if op.name == contract.MATMUL.name else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info(op.inputs[0].name, first_type, shape)]
    for name in fed:
        inputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[held[name].dtype], None))  # type: ignore[union-attr]
    graph = helper.make_graph(
        [node],
        "one",
        inputs,
        [helper.make_tensor_value_info("Y", out_type, None)],
        [numpy_helper.from_array(v, k) for k, v in held.items() if v is not None and k not in fed],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(contract.DOMAIN, contract.OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def brain_node(weight: PackedWeight | BcqWeight, opset: int) -> onnx.ModelProto:
    """BcqMatMul on bfloat16 between casts from and to float32: NumPy has no bfloat16 to feed."""
    model = one_node(contract.MATMUL, weight, np.float32, ("batch",))
    node = model.graph.node.pop()
    node.input[0], node.output[0] = "A_brain", "Y_brain"
    into = helper.make_node("Cast", ["A"], ["A_brain"], to=TensorProto.BFLOAT16)
    out = helper.make_node("Cast", ["Y_brain"], ["Y"], to=TensorProto.FLOAT)
    model.graph.node.extend([into, node, out])
    model.opset_import[0].version = opset
    return model


def open_session(
    model: onnx.ModelProto | Path, threads: int = 1, entries: dict[str, str] | None = None
) -> ort.InferenceSession:
    """A session with the library, of a model in memory or on disk, with session configuration entries."""
    options = default_options()
    options.log_severity_level = 4  # refusals are what tests ask for
    options.intra_op_num_threads = threads
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    register_library(options)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_node(model: onnx.ModelProto, feeds: dict[str, Array], threads: int = 1) -> Array:
    """The one output of `one_node`."""
    return np.asarray(open_session(model, threads).run(None, feeds)[0])
