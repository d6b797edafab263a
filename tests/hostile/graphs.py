# SPDX-License-Identifier: Apache-2.0
"""Opsets, domains and names; nodes inside branches, loops and functions; weights that nodes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from hostile.case import Case, Mutation
from hostile.subjects import OPSET, Subject

OPSETS = "opset and domain"
NESTED = "subgraphs"
SHARED = "names and sharing"


def _import(versions: list[int]) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        domain = model.opset_import[1].domain
        del model.opset_import[1:]
        model.opset_import.extend(helper.make_opsetid(domain, version) for version in versions)

    return mutate


def _on_node(**fields: str) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        for name, value in fields.items():
            setattr(model.graph.node[0], name, value)

    return mutate


def _opsets(subject: Subject) -> Iterator[Case]:
    words, places = ("opset", "version"), ("the_node", f"'{subject.domain}'", f"domain {subject.domain}")
    many = ([1, 1], [1, 2], [2, 1])
    for versions in ([], [0], [2], [999], [1000], [1001], [2**31], [2**62], [-1], *many):
        yield Case(subject, OPSETS, f"versions {versions}", _import(versions), words, places)
    near = (subject.domain.upper(), subject.domain + " ", subject.domain + "\0", "", "ai.onnx", "x" * 1000)
    for domain in near:
        mutate = _on_node(domain=domain)
        yield Case(subject, OPSETS, f"domain {domain[:20]!r}", mutate, ("domain", subject.op), ("the_node",))
    for op in (subject.op.lower(), subject.op + "2", subject.op[:-1], "x" * 1000):
        mutate = _on_node(op_type=op)
        yield Case(subject, OPSETS, f"operator {op[:20]!r}", mutate, (op[:50],), ("the_node",))
    yield Case(subject, OPSETS, "operator ''", _on_node(op_type=""), ("operator", "op_type"), ("the_node",))
    yield Case(subject, OPSETS, "overload", _on_node(overload="x"), ("overload", subject.op), ("the_node",))


def _break(node: onnx.NodeProto) -> None:
    """The damage that is told from inside a nested graph: too many bits."""
    next(attribute for attribute in node.attribute if attribute.name == "bits").i = 77


def _branch(weights_inside: bool, broken: bool, depth: int = 1) -> Mutation:
    """The node moves into the branch of an If that is taken."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        graph = model.graph
        inner = onnx.GraphProto()
        inner.CopyFrom(graph)
        if broken:
            _break(inner.node[0])
        output = list(graph.output)
        weights = list(inner.initializer) if weights_inside else []
        nodes = list(inner.node)
        for level in range(depth):
            then = helper.make_graph(nodes, f"then{level}", [], output, weights if level == 0 else [])
            # Not known before the run: ONNX Runtime would unfold the branch and rename its nodes.
            condition = helper.make_node("IsNaN", ["pi"], [f"c{level}"])
            other = onnx.GraphProto()
            other.CopyFrom(then)
            choice = helper.make_node(
                "If", [f"c{level}"], ["Y"], f"if{level}", then_branch=other, else_branch=then
            )
            nodes = [condition, choice]
        del graph.node[:]
        graph.node.extend(nodes)
        if weights_inside:
            del graph.initializer[:]
        graph.input.append(helper.make_tensor_value_info("pi", TensorProto.FLOAT, []))
        graph.initializer.append(helper.make_tensor("pi", TensorProto.FLOAT, [], [3.14]))

    return mutate


def _loop(broken: bool) -> Mutation:
    """The node moves into a Loop of one turn, its weights stay outside."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        graph = model.graph
        node = onnx.NodeProto()
        node.CopyFrom(graph.node[0])
        if broken:
            _break(node)
        node.output[0] = "inner"
        scalar = helper.make_tensor_value_info
        body = helper.make_graph(
            [helper.make_node("Identity", ["keep"], ["going"]), node],
            "body",
            [scalar("turn", TensorProto.INT64, []), scalar("keep", TensorProto.BOOL, [])],
            [scalar("going", TensorProto.BOOL, []), helper.make_tensor_value_info("inner", 1, None)],
        )
        once = helper.make_tensor("once", TensorProto.INT64, [], [1])
        back = helper.make_tensor("axis", TensorProto.INT64, [1], [0])
        graph.initializer.extend([once, back])
        del graph.node[:]
        graph.node.append(helper.make_node("Loop", ["once", ""], ["stacked"], "loop", body=body))
        graph.node.append(helper.make_node("Squeeze", ["stacked", "axis"], ["Y"], "squeeze"))

    return mutate


def _function(broken: bool, by_reference: bool) -> Mutation:
    """The node moves into a model-local function of another domain."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        graph = model.graph
        node = onnx.NodeProto()
        node.CopyFrom(graph.node[0])
        bits: Any = next(attribute for attribute in node.attribute if attribute.name == "bits")
        outer = 77 if broken else bits.i
        if by_reference:
            bits.ClearField("i")
            bits.ref_attr_name = "planes"
        else:
            bits.i = outer
        inputs = list(node.input)
        attributes = ["planes"] if by_reference else []
        function = helper.make_function(
            "mine", "Outer", inputs, ["Y"], [node], list(model.opset_import), attributes
        )
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid("mine", 1))
        del graph.node[:]
        call = helper.make_node("Outer", inputs, ["Y"], "call", domain="mine")
        if by_reference:
            call.attribute.append(helper.make_attribute("planes", outer))
        graph.node.append(call)

    return mutate


def _nested(subject: Subject) -> Iterator[Case]:
    forms: dict[str, Any] = {
        "branch": lambda broken: _branch(True, broken),
        "branch, weights outside": lambda broken: _branch(False, broken),
        "three branches deep": lambda broken: _branch(False, broken, 3),
        "loop": _loop,
        "function": lambda broken: _function(broken, by_reference=False),
        "function, by reference": lambda broken: _function(broken, by_reference=True),
    }
    for name, form in forms.items():
        yield Case(subject, NESTED, name, form(False), legal=True)
        yield Case(subject, NESTED, f"{name}, 77 bits", form(True), ("bits",), ("the_node", "call"))


def _second_node(**fields: int) -> Mutation:
    """Another node reads the same tensors with other attributes."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        node = model.graph.node.add()
        node.CopyFrom(model.graph.node[0])
        node.name, node.output[0] = "second", "Z"
        for attribute in node.attribute:
            if attribute.name in fields:
                attribute.i = fields[attribute.name]
        model.graph.output.append(helper.make_tensor_value_info("Z", TensorProto.FLOAT, None))

    return mutate


def _same_output(name: str) -> Mutation:
    return lambda model, folder: model.graph.node[0].output.__setitem__(0, name)


def _more_outputs(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node[0].output.append("Z")


def _no_outputs(model: onnx.ModelProto, folder: Path) -> None:
    del model.graph.node[0].output[:]


def _named_and_broken(name: str) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        model.graph.node[0].name = name
        _break(model.graph.node[0])

    return mutate


def _shared(subject: Subject) -> Iterator[Case]:
    sizes = ("bits",)
    yield Case(subject, SHARED, "weight of two nodes", _second_node(), legal=True)
    yield Case(
        subject, SHARED, "of two nodes, one broken", _second_node(bits=5), (*sizes, "shape"), ("second",)
    )
    for name in (subject.first, *subject.tensors):
        yield Case(subject, SHARED, f"output named {name}", _same_output(name), (name,), (name,))
    yield Case(subject, SHARED, "outputs too many", _more_outputs, ("output",), ("the_node",))
    yield Case(subject, SHARED, "no output", _no_outputs, ("output",), ("the_node",))
    # A node may have no name; then its output stands in for it.
    yield Case(subject, SHARED, "nameless, 77 bits", _named_and_broken(""), sizes, ("'Y'",))
    yield Case(subject, SHARED, "escapes, 77 bits", _named_and_broken("a\x1b[2Jb\nc"), sizes, ("a?[2Jb?c",))
    yield Case(subject, SHARED, "long name, 77 bits", _named_and_broken("n" * 10**6), sizes, ("n" * 50,))
    yield Case(subject, SHARED, "foreign name", _named_and_broken("\u00e9\u4e2d"), sizes, ("\u00e9\u4e2d",))
    odd = "x" + "\u00e9" * 300  # cutting after 200 bytes would cut a character in two
    yield Case(subject, SHARED, "long foreign name", _named_and_broken(odd), sizes, (odd[:90],))


def cases(subject: Subject) -> Iterator[Case]:
    """Everything around the node."""
    assert OPSET >= 13, "Squeeze takes its axes as an input"
    yield from _opsets(subject)
    yield from _nested(subject)
    yield from _shared(subject)
