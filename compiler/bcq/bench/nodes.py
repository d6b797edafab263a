# SPDX-License-Identifier: Apache-2.0
"""ONNX models of equal nodes that read distinct weights, and onnxruntime sessions of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bcq.bench.contender import Float32, Weights
from bcq.runtime import default_options, register_library

IR_VERSION = 10
OPSET = 21
ALIGNMENT = 4096


@dataclass(frozen=True)
class Node:
    """The operator that a model repeats.

    Attributes:
        op: operator type.
        domain: operator domain.
        rows: N.
        inputs: K.
        attributes: of a node, given its weights.
        config: session configuration entries of its own.
    """

    op: str
    domain: str
    rows: int
    inputs: int
    attributes: Callable[[Weights], Mapping[str, Any]]
    config: Mapping[str, str] = field(default_factory=dict)

    def prepare(self, copies: Sequence[Weights], folder: Path) -> OrtModel:
        """Writes a model of one node per copy."""
        return OrtModel(self.write(copies, folder), len(copies), self.config)

    def write(self, copies: Sequence[Weights], folder: Path) -> Path:
        """Writes ``model.onnx``, whose nodes all read the input ``A [M, K]`` and write ``Y0``, ``Y1``...

        Weights are external data at multiples of 4096 bytes, so that they can be mapped.
        """
        path = folder / "model.onnx"
        nodes, initializers = [], []
        with (folder / "model.data").open("wb") as data:
            for i, weights in enumerate(copies):
                names = [f"{name}_{i}" for name in weights.tensors]
                for name, tensor in zip(names, weights.tensors.values(), strict=True):
                    initializers.append(_external(data, name, tensor))
                node = helper.make_node(self.op, ["A", *names], [f"Y{i}"], domain=self.domain)
                attributes = self.attributes(weights).items()
                node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes)
                nodes.append(node)
        onnx.save(self._model(nodes, initializers), str(path))
        return path

    def _model(self, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.ModelProto:
        floats = TensorProto.FLOAT
        outputs = [helper.make_tensor_value_info(n.output[0], floats, ["M", self.rows]) for n in nodes]
        a = helper.make_tensor_value_info("A", floats, ["M", self.inputs])
        graph = helper.make_graph(nodes, "bench", [a], outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        if self.domain:
            opsets.append(helper.make_opsetid(self.domain, 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _external(data: BinaryIO, name: str, tensor: NDArray[Any]) -> onnx.TensorProto:
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


@dataclass(frozen=True)
class OrtModel:
    """A written model; see `bcq.bench.contender.Model`."""

    path: Path
    copies: int
    config: Mapping[str, str]

    def session(self, a: Float32, threads: int) -> OrtSession:
        """Opens it with everything bound."""
        return OrtSession(self, a, threads)


class OrtSession:
    """A session in which a run allocates nothing in Python; see `bcq.bench.contender.Session`."""

    def __init__(self, model: OrtModel, a: Float32, threads: int) -> None:
        options = default_options()
        options.intra_op_num_threads = threads
        if model.copies > 1:
            # Its threads have many products in a run; between runs they must not spin while others are timed.
            # A session of one product is run again and again, and its threads keep spinning as in a model.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        for key, value in model.config.items():
            options.add_session_config_entry(key, value)
        register_library(options)
        self._session = ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input("A", a)
        for i in range(model.copies):
            self._binding.bind_output(f"Y{i}")

    def run(self) -> None:
        """One run of the session."""
        self._session.run_with_iobinding(self._binding)

    def output(self, copy: int) -> Float32:
        """Output ``Y<copy>``."""
        y: Float32 = self._binding.get_outputs()[copy].numpy()
        return y
