# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder as an ONNX graph whose weights stay in their file until somebody reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bcq import packing
from bcq.errors import InputError, UnsupportedError
from bcq.files.base import QuantizedBase
from bcq.frontends.architectures import Architecture
from bcq.frontends.last_logits import open_logits
from bcq.frontends.names import stored_names
from bcq.frontends.simplify import simplify
from bcq.frontends.weightless import quiet, untie, weightless_model
from bcq.precisions.files import ENCODER_FILE, MODEL_FILE

_WRAPPER = "model."  # CachedDecoder and Encoder hold the model under this name


@dataclass(frozen=True)
class Skeleton:
    """A graph without weights.

    Attributes:
        model: initializers that are parameters carry the names of the file's tensors; of an encoder-decoder
            the graph that writes the answer.
        architecture: what was exported.
        encoder: of an encoder-decoder the graph that reads the source, else None.
    """

    model: ir.Model
    architecture: Architecture
    encoder: ir.Model | None = None

    def graphs(self) -> dict[str, ir.Model]:
        """Each graph by the name of its file, what generates first."""
        encoder = {} if self.encoder is None else {ENCODER_FILE: self.encoder}
        return {MODEL_FILE: self.model, **encoder}


@dataclass(frozen=True)
class _Unbound:
    """A graph whose parameters, by the names of the file's tensors, have no values yet."""

    model: ir.Model
    parameters: frozenset[str]

    def bound(self, base: QuantizedBase) -> ir.Model:
        """A copy whose parameters read the base's tensors."""
        copy = self.model.clone()
        for name in self.parameters:
            _bind(copy.graph.initializers[name], base)
        return copy


_LATEST: dict[str, tuple[Architecture, list[_Unbound]]] = {}


def skeleton(base: QuantizedBase, attention: str | None = None, half: bool = False) -> Skeleton:
    """Exports the graph of a quantized base; a weight is read only when somebody asks for it.

    Args:
        base: its ``config.json`` decides the graph, its tensors the names.
        attention: of a decoder: ``"fused"``, one node a layer, which only onnxruntime runs; ``"plain"``, in
            standard operators; None for fused where that is possible.
        half: activations, and what is not packed, are float16; else float32.

    Returns:
        A graph in which a matrix that the base holds packed reads as its dequantized values.

    Raises:
        InputError: E102 for a bad config, E107 for a parameter without a tensor.
        UnsupportedError: E401 for an architecture that is not exported, or whose attention cannot be fused.

    Reading a tensor raises UnsupportedError E401 when it holds values that float16 does not.
    """
    key = _graph_key(base, attention, half)
    if key not in _LATEST:
        _LATEST.clear()  # one graph without weights is small, and exporting several bit widths needs only one
        _LATEST[key] = _unbound(base, attention, half)
    architecture, graphs = _LATEST[key]
    model, *encoder = (graph.bound(base) for graph in graphs)
    return Skeleton(model, architecture, *encoder)


def _graph_key(base: QuantizedBase, attention: str | None, half: bool) -> str:
    """Everything that the graph depends on: the dense model's configuration and the names of its tensors."""
    config = {name: value for name, value in base.config.items() if name != "quantization_config"}
    return json.dumps([attention, half, config, sorted([*base.names(), *base.dense_names()])], sort_keys=True)


def _unbound(base: QuantizedBase, attention: str | None, half: bool) -> tuple[Architecture, list[_Unbound]]:
    """Runs the exporter, which takes most of the time of an export."""
    module, architecture = weightless_model(base.folder, half)
    names = {*base.names(), *base.dense_names()}
    untie(module, names, lambda name: read_dense(base, name))
    renamed = stored_names(module, names, base.folder)
    with quiet():
        models = _exported(module, architecture, attention)
        for model in models:
            simplify(model, {_WRAPPER + name for name in renamed})
            open_logits(model)
            model.graph.name = architecture.class_name
        return architecture, [_Unbound(model, _rename_initializers(model, renamed)) for model in models]


def read_dense(base: QuantizedBase, name: str) -> NDArray[np.float32]:
    """A tensor of a base as the model holds it: a packed matrix dequantized, any other as stored."""
    matrix = base.find(name)
    if matrix is None:
        return base.checkpoint.read(name)
    dense = packing.unpack(base.packed(name)).dequantize()
    return dense.T if matrix.transposed else dense


def _exported(module: Any, architecture: Architecture, attention: str | None) -> list[ir.Model]:
    """The graph of a model; of an encoder-decoder the decoder's and the encoder's."""
    if architecture.kind == "decoder":
        from bcq.frontends.hf_decoder import export_decoder, why_not_fused

        reason = why_not_fused(module)
        if reason and attention == "fused":
            raise UnsupportedError(
                "E401", f"the attention of this model cannot be fused: {reason}.", "Use --attention plain."
            )
        return [export_decoder(module, fused=attention != "plain" and reason is None)]
    if architecture.kind == "encoder-decoder":
        from bcq.frontends import hf_encoder_decoder

        return [hf_encoder_decoder.export_decoder(module), hf_encoder_decoder.export_encoder(module)]
    from bcq.frontends.hf_encoder import export_encoder

    return [export_encoder(module, architecture.class_name)]


def _rename_initializers(model: ir.Model, renamed: Mapping[str, str]) -> frozenset[str]:
    """Gives parameters the names of the file; returns those that the graph reads."""
    names = set()
    for name, value in list(model.graph.initializers.items()):
        inner = name.removeprefix(_WRAPPER)
        if name.startswith(_WRAPPER) and inner in renamed:
            value.name = renamed[inner]
            names.add(renamed[inner])
    return frozenset(names)


def _bind(value: ir.Value, base: QuantizedBase) -> None:
    """Gives a parameter a tensor that is read each time it is asked for, and never kept."""
    name, shape, dtype = value.name, value.shape, value.dtype
    assert name is not None  # the exporter names and types every parameter
    assert shape is not None
    assert dtype is not None

    def load() -> ir.TensorProtocol:
        array = _converted(read_dense(base, name), dtype, name)
        if array.shape != tuple(shape):
            raise InputError(
                "E107",
                f"tensor '{name}': got shape {list(array.shape)}, the config asks for {list(shape)}.",
                "config.json and the weights do not belong together.",
            )
        return ir.Tensor(array, name=name)

    value.const_value = ir.LazyTensor(load, dtype=dtype, shape=shape, name=name)


def _converted(array: NDArray[np.float32], dtype: ir.DataType, name: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # said below
        result = np.ascontiguousarray(array, dtype=dtype.numpy())
    if result.dtype == np.float16 and np.isinf(result).sum() > np.isinf(array).sum():
        raise UnsupportedError(
            "E401",
            f"tensor '{name}': got values up to {np.abs(array).max():.3g}, float16 holds 65504.",
            "Leave --dtype float16 away.",
        )
    return result
