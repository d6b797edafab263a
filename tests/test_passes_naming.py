# SPDX-License-Identifier: Apache-2.0
"""A matrix has the name by which the user knows it, whatever the exporter called it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from bcq.passes import naming

SCOPES = "pkg.torch.onnx.name_scopes"


def node(name: str, scopes: str | None = None) -> ir.Node:
    made = ir.node("MatMul", [ir.val("a"), ir.val("b")], name=name)
    made.outputs[0].name = "y"
    if scopes is not None:
        made.metadata_props[SCOPES] = scopes
    return made


@pytest.mark.parametrize(
    "name",
    ["val_309", "onnx::MatMul_1234", "_12", "77", "/model/Constant_3_output_0", "t", "permute_4", "", None],
)
def test_made_up_names_are_recognized(name: str | None) -> None:
    assert naming.is_nameless(name)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.0.fc1.weight", "w", "values_3", "h.0.t.weight"]
)
def test_real_names_are_kept(name: str) -> None:
    assert not naming.is_nameless(name)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (node("node_linear_3", "['', 'model', 'model.layers.0', 'model.layers.0.q_proj', 'linear']"),
         "model.layers.0.q_proj.weight"),
        (node("/model/layers.0/q_proj/MatMul"), "model.layers.0.q_proj.weight"),
        (node("node_linear_3"), "node_linear_3.weight"),
        (node(""), "y.weight"),
        (node("node_linear_3", "not a list ["), "node_linear_3.weight"),
        (node("node_linear_3", "['', 'linear']"), "node_linear_3.weight"),
        (node("node_linear_3", "__import__('os').getcwd()"), "node_linear_3.weight"),
    ],
)  # fmt: skip
def test_a_nameless_weight_is_named_after_the_module_or_node_that_reads_it(
    made: ir.Node, expected: str
) -> None:
    assert naming.name_after(made) == expected


def test_a_taken_name_gets_a_number() -> None:
    taken = {"w", "w_1"}
    assert naming.fresh("w", taken) == "w_2"
    assert naming.fresh("v", taken) == "v"
    assert taken == {"w", "w_1", "w_2", "v"}
