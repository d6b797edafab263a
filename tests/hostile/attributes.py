# SPDX-License-Identifier: Apache-2.0
"""Attributes that are out of range, of the wrong type, missing, doubled or unknown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, helper

from hostile.case import Case, Mutation
from hostile.subjects import Subject

FAMILY = "attributes"
HUGE = (2**31, 2**31 - 1, 2**32 + 1, 2**62, 2**63 - 1, -(2**63))
INTEGERS: dict[str, tuple[int, ...]] = {
    "bits": (0, -1, 2, 3, 9, 32, 259, *HUGE),
    "K": (0, -1, 1, 99, 128, 160, *HUGE),
    "N": (0, -1, 1, 15, 80, *HUGE),
    "group_size": (0, -32, 1, 16, 31, 33, 64, 99, 100, 128, *HUGE),
    "block_size": (0, -32, 1, 8, 31, 33, 64, 99, 128, *HUGE),
    "format_version": (0, -1, 1, 2, 3, *HUGE),
    "accuracy_level": (-1, 5, 99, *HUGE),
}
STRINGS: dict[str, tuple[bytes, ...]] = {
    "layout": (b"", b"tile32", b"TILE16", b"tile16 ", b"tile16\0", b"\xff\xfe", b"x" * 100_000),
    "code_hash": (b"", b"0" * 63, b"0" * 65, b"g" * 64, b"AB" * 32, b"\n" * 64, b"\0" * 64, b"\xc3" * 64),
}
SIZES = ("bits", "K", "N", "group_size", "block_size", "accuracy_level")
UNKNOWN: dict[str, Any] = {
    "int": 1,
    "string": "x",
    "list": [1, 2],
    "graph": helper.make_graph([], "g", [], []),
    "tensor": helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [1.0]),
}


def _set(name: str, value: Any) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        node = model.graph.node[0]
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        if value is not None:
            node.attribute.append(helper.make_attribute(name, value))

    return mutate


def _append(attribute: AttributeProto) -> Mutation:
    return lambda model, folder: model.graph.node[0].attribute.append(attribute)


def _words(name: str) -> tuple[str, ...]:
    # A size that is valid by itself is refused because of the tensors that do not fit it; a version, because
    # of codes that have as many planes as the other one.
    others = {"bits": ("format_version",), "format_version": ("codes shape",)}.get(name, ())
    return (name, *others, "shape", "padding", "dimension") if name in SIZES else (name, *others)


def _wrong_types(name: str, value: Any) -> Iterator[tuple[str, AttributeProto]]:
    yield "float", helper.make_attribute(name, 3.0)
    other: Any = str(value) if isinstance(value, int) else 16
    yield "other", helper.make_attribute(name, other)
    yield "list", helper.make_attribute(name, [value])
    yield "no type", AttributeProto(name=name)
    yield "type without value", AttributeProto(name=name, type=AttributeProto.TENSOR)
    yield "value of another type", AttributeProto(name=name, type=AttributeProto.FLOAT, i=3, s=b"3")
    yield "reference", AttributeProto(name=name, type=AttributeProto.INT, ref_attr_name="nowhere")


def cases(subject: Subject) -> Iterator[Case]:
    """All attribute mutations of an operator."""
    for name, value in subject.attributes.items():
        # MatMulNBits has defaults for these, and they are the values that its healthy model has.
        default = subject.op == "MatMulNBits" and name in ("bits", "accuracy_level")
        yield Case(subject, FAMILY, f"{name} missing", _set(name, None), _words(name), legal=default)
        if isinstance(value, int):
            yield from _integers(subject, name)
        for text in STRINGS.get(name, ()):
            yield Case(subject, FAMILY, f"{name}={text[:20]!r}/{len(text)}", _set(name, text), _words(name))
        for what, attribute in _wrong_types(name, value):
            yield Case(subject, FAMILY, f"{name} {what}", _replace(attribute), _words(name))
    for what, value in UNKNOWN.items():
        yield Case(subject, FAMILY, f"unknown {what}", _set("surprise", value), ("surprise",))
    yield Case(subject, FAMILY, "bits twice", _append(helper.make_attribute("bits", 8)), ("bits",))
    yield Case(subject, FAMILY, "nameless", _append(AttributeProto(type=AttributeProto.INT)), ("attribute",))


def _replace(attribute: AttributeProto) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        _set(attribute.name, None)(model, folder)
        model.graph.node[0].attribute.append(attribute)

    return mutate


def _integers(subject: Subject, name: str) -> Iterator[Case]:
    for bad in INTEGERS[name]:
        if bad != subject.attributes[name] and not _harmless(subject, name, bad):
            yield Case(subject, FAMILY, f"{name}={bad}", _set(name, bad), _words(name))
    if (subject.op, name) in (("BcqMatMul", "N"), ("BcqGather", "N"), ("BcqGather", "K")):
        # The padding of one matrix is the zeros of another: a file that is valid, if odd.
        more = subject.attributes[name] + 1
        yield Case(subject, FAMILY, f"{name}+1", _set(name, more), legal=True, values={name: more})


def _harmless(subject: Subject, name: str, value: int) -> bool:
    """Values that give another valid node: more inputs or rows than were meant, in the same words."""
    return subject.op == "BcqGather" and (name, value) == ("K", 128)
