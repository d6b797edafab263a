# SPDX-License-Identifier: Apache-2.0
"""A key-value cache of int8: a quarter of the bytes that attention reads for each token.

onnxruntime's attention stores ``round(x / scale)``, cut at +-127, and multiplies by the scale as it reads. A
scale is a constant of the file, one for a layer's keys and one for its values, or one for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bcq.passes.fuse_shared_input import constant
from bcq.passes.naming import value_names

Float32 = NDArray[np.float32]
_ATTENTION = ("com.microsoft", "GroupQueryAttention", "")
_CACHES = {3: 12, 4: 13}  # past keys and values, and where the operator takes their scales
_PRESENT = slice(1, 3)  # its outputs that continue them
_LARGEST = 127
# On GPT-2's shape one scale reads 2.4 times as fast as float32, a scale a channel 1.7 times; and one that was
# measured on few tokens cuts more of a channel that is small there than of a whole layer: on a trained GPT-2
# perplexity rose by 0.003 % with one scale and this room, by 1.6 % with channels.
_ROOM, _CHANNEL_ROOM = 1.25, 2.0  # times the largest value seen
_UNEVEN = 4.0  # the largest channel over the median one; above, one scale would drown the others
_LEAST = 1e-3  # of the largest channel: one that showed nothing but zeros still has some room


def int8_cache(model: ir.Model, largest: Mapping[str, Float32]) -> None:
    """Makes every cache input and output int8.

    Args:
        model: with fused attention and caches of float32 or float16.
        largest: by the name of the cache input, the largest value ``[heads, size]`` that was seen.
    """
    taken = value_names(model)
    for node in list(model.graph):
        if node.op_identifier() != _ATTENTION:
            continue
        pasts = {place: _given(node.inputs[place]) for place in _CACHES}
        seen = {place: largest[str(past.name)] for place, past in pasts.items()}
        apart = any(map(is_uneven, seen.values()))  # the operator takes keys and values alike
        node.resize_inputs(max(len(node.inputs), max(_CACHES.values()) + 1))
        for place, found in seen.items():
            array = channel_scales(found) if apart else one_scale(found)
            scale = constant(model.graph, array, scale_name(pasts[place].name), taken)
            node.replace_input_with(_CACHES[place], scale)
        for value in (*pasts.values(), *node.outputs[_PRESENT]):
            value.type = ir.TensorType(ir.DataType.INT8)
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        for name in ("k_quant_type", "v_quant_type"):
            node.attributes[name] = ir.AttrString(name, "PER_CHANNEL" if apart else "PER_TENSOR")


def scale_name(past: str | None) -> str:
    """The name of the constant that holds the scale of a cache input."""
    return f"attention.{past}.scale"


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None  # an export's attention has a past
    return value


def is_uneven(largest: Float32) -> bool:
    """Whether some channels are so much larger than others that each needs a scale of its own."""
    return float(largest.max()) > _UNEVEN * float(np.median(largest))


def one_scale(largest: Float32) -> Float32:
    """The scale ``[1]`` of all channels."""
    return np.array([float(largest.max()) * _ROOM / _LARGEST or 1.0], np.float32)


def channel_scales(largest: Float32) -> Float32:
    """The scale of each channel, ``[1, heads, 1, size]``."""
    floor = _LEAST * float(largest.max()) or 1.0
    return (np.maximum(largest, floor) * _CHANNEL_ROOM / _LARGEST).astype(np.float32)[None, :, None, :]
