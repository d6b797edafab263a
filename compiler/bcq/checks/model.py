# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime neither checks nor shows to a custom operator, checked before a model is opened.

ONNX Runtime accepts any version of our operator set, attributes that nobody declared, doubled names and
tensors that store their data twice; for other damage it names no node. Sizes, shapes and values are the
library's to check.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bcq import contract
from bcq.checks.onnx_wire import Message, WireError
from bcq.checks.tensor import check_tensor, printable, refuse
from bcq.errors import InputError

_MAX_DEPTH = 32  # nested branch and loop bodies; protocol buffers stop at about this depth too
_STANDARD = ("", "ai.onnx")
_ATTRIBUTE_TYPES = {"int": 2, "string": 3}
_SINGLE_VALUES = {"int": 3, "string": 4}
_ALL_VALUES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 22, 23)


@dataclass(frozen=True)
class _Scope:
    """Where a node stands: names that it may read, names that its own graph is given, versions, depth."""

    path: Path
    names: frozenset[str]
    own: frozenset[str]
    opset: list[int]
    in_function: bool
    depth: int = 0


def check_model(path: Path) -> None:
    """Checks all BCQ nodes of a model and the way in which its tensors are stored.

    Args:
        path: an ``.onnx`` file.

    Raises:
        InputError: E103 when the file is no ONNX model or a tensor is stored in a wrong way, E109 when a BCQ
            node is malformed.
    """
    if path.stat().st_size == 0:
        raise InputError("E103", f"{path}: this file is empty.", "Copy or export it again.")
    with path.open("rb") as file:
        # Unmapped when the last view is gone, which may be that of an error on its way.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        _check(path, Message(data))
    except WireError as fault:
        text = f"{path}: this is no ONNX model, or it is cut short: {fault}."
        raise InputError("E103", text, "Copy or export it again.") from None


def _check(path: Path, model: Message) -> None:
    if model.has(7):
        _check_graph(model.merged(7), _Scope(path, frozenset(), frozenset(), _opset(model, 8), False))
    for function in model.messages(25):
        if function.text(10) == contract.DOMAIN:
            continue  # the operators themselves, written in standard ones
        inputs = frozenset(function.texts(4))
        scope = _Scope(path, inputs, inputs, _opset(function, 9), True)
        _check_nodes(function, 7, scope)


def _opset(owner: Message, field: int) -> list[int]:
    """Versions of our domain that a model or function imports."""
    return [entry.number(2) for entry in owner.messages(field) if entry.text(1) == contract.DOMAIN]


def _check_graph(graph: Message, outer: _Scope) -> None:
    if outer.depth > _MAX_DEPTH:
        raise InputError("E103", f"{outer.path}: graphs lie more than {_MAX_DEPTH} deep in each other.")
    tensors = graph.messages(5)
    names = [tensor.text(8) for tensor in tensors]
    for name, count in Counter(names).items():
        if count > 1 and name:
            raise refuse(outer.path, f"initializer '{name}'", "name", f"it {count} times", "it once")
    for tensor in tensors:
        check_tensor(outer.path, tensor)
    names += [sparse.merged(1).text(8) for sparse in graph.messages(15) if sparse.has(1)]
    inputs = [port.text(1) for port in graph.messages(11)]
    own = frozenset(names + inputs)
    _check_nodes(
        graph, 1, _Scope(outer.path, outer.names | own, own, outer.opset, outer.in_function, outer.depth)
    )


def _check_nodes(owner: Message, field: int, scope: _Scope) -> None:
    nodes = owner.messages(field)
    produced = frozenset(name for node in nodes for name in node.texts(2))
    inside = _Scope(
        scope.path, scope.names | produced, frozenset(), scope.opset, scope.in_function, scope.depth + 1
    )
    for node in nodes:
        if node.text(7) == contract.DOMAIN:
            _check_node(node, scope, scope.names | produced)
        elif node.text(4) in contract.OPS and node.text(7) in _STANDARD:
            raise _fault(scope, node, "domain", f"'{node.text(7)}'", f"'{contract.DOMAIN}'")
        for graph in _graphs(node):
            _check_graph(graph, inside)


def _graphs(node: Message) -> Iterator[Message]:
    for attribute in node.messages(5):
        if attribute.has(6):
            yield attribute.merged(6)
        yield from attribute.messages(11)


def _fault(scope: _Scope, node: Message, what: str, got: str, expected: str) -> InputError:
    name = node.text(3) or next(iter(node.texts(2)), "")
    return refuse(scope.path, f"{printable(node.text(4), 60)} '{printable(name)}'", what, got, expected)


def _check_node(node: Message, scope: _Scope, known: frozenset[str]) -> None:
    if scope.opset != [contract.OPSET_VERSION]:
        got = " and ".join(map(str, scope.opset)) or "none"
        raise _fault(scope, node, f"opset of domain '{contract.DOMAIN}'", got, str(contract.OPSET_VERSION))
    op = contract.OPS.get(node.text(4))
    if op is None:
        raise _fault(scope, node, "operator", f"'{node.text(4)}'", " or ".join(contract.OPS))
    if node.text(8):
        raise _fault(scope, node, "overload", f"'{node.text(8)}'", "none")
    _check_ports(node, op, scope, known)
    _check_attributes(node, op, scope)


def _check_ports(node: Message, op: contract.Op, scope: _Scope, known: frozenset[str]) -> None:
    inputs, outputs = node.texts(1), node.texts(2)
    if len(inputs) != len(op.inputs):
        names = ", ".join(port.name for port in op.inputs)
        raise _fault(scope, node, "inputs", str(len(inputs)), f"{len(op.inputs)}: {names}")
    for port, name in zip(op.inputs, inputs, strict=True):
        if not name:
            raise _fault(scope, node, f"input {port.name}", "none", "a tensor")
        if name not in known:
            raise _fault(scope, node, f"input {port.name}", f"'{name}', which nothing makes", "a tensor")
    if len(outputs) != len(op.outputs) or not outputs[0]:
        raise _fault(scope, node, "outputs", str(len([name for name in outputs if name])), "1")
    if outputs[0] in scope.own:
        raise _fault(scope, node, "output", f"'{outputs[0]}', which exists already", "a new name")


def _check_attributes(node: Message, op: contract.Op, scope: _Scope) -> None:
    attributes = node.messages(5)
    names = [attribute.text(1) for attribute in attributes]
    for name, attribute in zip(names, attributes, strict=True):
        if name not in op.attributes:
            raise _fault(scope, node, f"attribute '{name}'", "it", f"only {', '.join(op.attributes)}")
        if names.count(name) > 1:  # few names: those of the contract
            raise _fault(scope, node, f"attribute {name}", "it twice", "it once")
        _check_type(node, name, attribute, op.attributes[name], scope)
    for name in op.attributes:
        if name not in names:
            raise _fault(scope, node, f"attribute {name}", "none", f"one of type {op.attributes[name]}")


def _check_type(node: Message, name: str, attribute: Message, expected: str, scope: _Scope) -> None:
    if attribute.number(20) != _ATTRIBUTE_TYPES[expected]:
        raise _fault(scope, node, f"attribute {name}", f"type {attribute.number(20)}", f"type {expected}")
    if attribute.text(21):
        if scope.in_function:
            return
        raise _fault(scope, node, f"attribute {name}", f"a reference to '{attribute.text(21)}'", "a value")
    others = [field for field in _ALL_VALUES if field != _SINGLE_VALUES[expected]]
    if attribute.has(*others):
        raise _fault(scope, node, f"attribute {name}", "a value of another type", f"type {expected} alone")
