# SPDX-License-Identifier: Apache-2.0
"""A decoder whose next token is known: each token is answered by the next number; runs are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bcq.generation.model import Model

VOCABULARY, END = 10, 9
HEADS, WIDTH = 2, 4


class Counting:
    """A session that keeps the shapes and integers that it was fed.

    The cache holds each token's number in every place, so that a test can read what the cache knows.
    """

    def __init__(self, positions: bool = True) -> None:
        self.session = onnxruntime.InferenceSession(counting_graph(positions).SerializeToString())
        self.feeds: list[dict[str, NDArray[Any]]] = []

    def get_inputs(self) -> list[Any]:
        return list(self.session.get_inputs())

    def get_outputs(self) -> list[Any]:
        return list(self.session.get_outputs())

    def get_overridable_initializers(self) -> list[Any]:
        return list(self.session.get_overridable_initializers())

    def get_modelmeta(self) -> Any:
        return self.session.get_modelmeta()

    def run(self, names: list[str] | None, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.feeds.append(feeds)
        return list(self.session.run(names, feeds))


def counting_graph(positions: bool = True) -> onnx.ModelProto:
    """Logits are one-hot rows of token + 1; the cache grows by each token's number."""
    cache = [f"0.{part}" for part in ("key", "value")]
    names = ["input_ids", "attention_mask", *(["position_ids"] if positions else [])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", None]) for name in names]
    shape: list[str | int | None] = ["b", HEADS, None, WIDTH]
    past = [helper.make_tensor_value_info(f"past_key_values.{n}", TensorProto.FLOAT, shape) for n in cache]
    present = [helper.make_tensor_value_info(f"present.{n}", TensorProto.FLOAT, shape) for n in cache]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", None, VOCABULARY])
    nodes = [
        helper.make_node("Add", ["input_ids", "one"], ["next"]),
        helper.make_node("OneHot", ["next", "depth", "off_on"], ["logits"]),
        helper.make_node("Unsqueeze", ["input_ids", "axes"], ["column"]),
        helper.make_node("Cast", ["column"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "ones"], ["new"]),
        *(
            helper.make_node("Concat", [f"past_key_values.{n}", "new"], [f"present.{n}"], axis=2)
            for n in cache
        ),
    ]
    constants: dict[str, NDArray[Any]] = {
        "one": np.array(1, np.int64),
        "depth": np.array(VOCABULARY, np.int64),
        "off_on": np.array([0, 1], np.float32),
        "axes": np.array([1, 3], np.int64),
        "ones": np.ones((1, HEADS, 1, WIDTH), np.float32),
    }
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "counting", [*inputs, *past], [logits, *present], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def model(session: Any, context: int = 32, folder: Path = Path(), **search: Any) -> Model:
    """A model of `session`, as `bcq.load` would make one."""
    described = {"context_length": context, "vocab_size": VOCABULARY, "eos_token_id": END}
    return Model(folder, session, {"model": described, "search": search})
