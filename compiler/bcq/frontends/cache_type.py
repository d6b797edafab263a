# SPDX-License-Identifier: Apache-2.0
"""A key-value cache of int8 for an export that is whole: it is run to see how large keys and values are."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from bcq.errors import UnsupportedError
from bcq.files.checkpoint import read_json
from bcq.files.genai import CONFIG_FILE
from bcq.generation.cache import PAST
from bcq.generation.cache_ranges import largest, own_texts
from bcq.generation.model import Model
from bcq.passes.int8_cache import int8_cache
from bcq.runtime import session

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def make_int8(file: Path) -> None:
    """Rewrites the graph of an export with a cache of int8, on ranges that it shows on texts of its own.

    Args:
        file: the ``.onnx`` file, beside its weights and ``genai_config.json``.

    Raises:
        UnsupportedError: E401 for a graph whose cache cannot be int8.
    """
    graph = ir.load(file)
    reason = why_not_int8(graph)
    if reason:
        raise UnsupportedError(
            "E401", f"the cache of this model cannot be int8: {reason}.", "Leave --kv-cache away."
        )
    model = Model(file.parent, session(file), read_json(file.parent / CONFIG_FILE))
    model.end_tokens = frozenset()  # for texts of full length
    int8_cache(graph, largest(model, own_texts(model)))
    ir.save(graph, file)


def why_not_int8(graph: ir.Model) -> str | None:
    """Why onnxruntime's attention cannot have a cache of int8 in a graph; None where it can."""
    if not any(node.op_type == "GroupQueryAttention" for node in graph.graph):
        return "its attention is not one operator a layer"
    odd = next((value for value in graph.graph.inputs if _is_other_cache(value)), None)
    return None if odd is None else f"it is {odd.dtype and odd.dtype.name.lower()} already"


def _is_other_cache(value: ir.Value) -> bool:
    return str(value.name).startswith(PAST) and value.dtype not in _FLOATS
