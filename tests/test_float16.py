# SPDX-License-Identifier: Apache-2.0
"""float16 activations from a model folder: the types of the graph, parity, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq.errors import UnsupportedError, UsageError
from bcq.export import export
from bcq.matrices.plan import QuantizeOptions
from bcq.parity import verify
from tiny_models import save

OPTIONS = QuantizeOptions(bits=3, group_size=32, method="greedy")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def floats_of(values: Any) -> set[ir.DataType | None]:
    return {value.dtype for value in values if value.dtype in FLOATS}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("llama", {"attention": "plain"}),
        ("bert", {}),
        ("opt", {"kv_cache": "int8"}),
    ],
)
def test_a_model_in_float16_is_within_its_tolerance_and_made_from_its_folder(
    kind: str, how: dict[str, Any], tmp_path: Path
) -> None:
    source = save(kind, tmp_path / "model")
    export(source, tmp_path / "out", OPTIONS, dtype="float16", **how)
    graph = ir.load(tmp_path / "out" / "model.onnx").graph
    assert floats_of(graph.inputs) | floats_of(graph.outputs) == {ir.DataType.FLOAT16}
    result = verify(tmp_path / "out", source)  # 2^-11 for each product and each rounding, see bcq.parity
    assert result.ok, result
    assert result.tolerance > 1e-3
    if kind != "bert":
        assert len(bcq.load(tmp_path / "out").generate([5, 17, 33], 8)) > 0


def test_a_tensor_that_float16_cannot_hold_is_refused_by_its_name(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2LMHeadModel

    source = save("gpt2", tmp_path / "model")
    model = GPT2LMHeadModel.from_pretrained(source)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = 1e5
    model.save_pretrained(source)
    with pytest.raises(UnsupportedError, match=r"'transformer\.ln_f\.bias': got values up to 1e\+05"):
        export(source, tmp_path / "out", OPTIONS, dtype="float16")
    assert not (tmp_path / "out").exists()


def test_what_has_types_of_its_own_and_unknown_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match="has types of its own"):
        export(tmp_path / "graph.onnx", tmp_path / "out", dtype="float16")
    with pytest.raises(UsageError, match="dtype: got 'int4', expected one of float32, float16"):
        export(tmp_path / "graph.onnx", tmp_path / "out", dtype="int4")


def test_infinities_of_a_file_are_not_taken_for_an_overflow() -> None:
    from bcq.frontends.hf import _converted

    array = np.array([1.0, np.inf, -np.inf], np.float32)
    assert np.isinf(_converted(array, ir.DataType.FLOAT16, "mask")).tolist() == [False, True, True]
