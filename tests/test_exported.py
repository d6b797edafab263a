# SPDX-License-Identifier: Apache-2.0
"""The weights of an export as a checker reads them: what does not fit its node is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bcq.errors import InputError
from bcq.files.exported import ExportedWeights
from fuzz import seeds

Change = Callable[[onnx.ModelProto], object]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    seeds.export(folder)
    return folder


def with_part(part: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Another array for a part of the first node."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.domain == "bcq")
        name = next(name for name in node.input if name.endswith(part))
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))

    return edit


def with_attribute(name: str, value: int) -> Change:
    def edit(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.domain == "bcq")
        next(attribute for attribute in node.attribute if attribute.name == name).i = value

    return edit


WRONG: dict[str, tuple[Change, str]] = {
    "a group too many": (with_part("alpha_1", lambda a: np.repeat(a, 2, axis=1)), "alpha_1: got float16"),
    "another type": (with_part("alpha_rest", lambda a: a.astype(np.float32)), "alpha_rest: got float32"),
    "rows too few": (with_part("offset", lambda a: np.zeros((1, 2, 16), np.float16)), "offset: got float16"),
    "no inputs": (with_attribute("K", 0), "attributes"),
    "too many planes": (with_attribute("bits", 9), "attributes"),
    "planes that codes lack": (with_attribute("bits", 3), "codes: got uint32"),
}


@pytest.mark.parametrize("what", WRONG)
def test_parts_that_do_not_fit_their_node_are_refused(export: Path, tmp_path: Path, what: str) -> None:
    change, reason = WRONG[what]
    shutil.copytree(export, tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    change(model)
    (tmp_path / "out" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=reason) as caught:
        ExportedWeights.open(tmp_path / "out")
    assert caught.value.code == "E109"
    assert "node ''" not in caught.value.message  # a node without a name is told by its output


def test_an_export_that_fits_is_read(export: Path) -> None:
    weights = ExportedWeights.open(export)
    assert sorted(weights.packed) == ["first", "second"]
    assert weights.dequantized("second").shape == (20, 96)
