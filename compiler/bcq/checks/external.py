# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of an ``.onnx`` file say that their bytes lie, and whether a reader may go there.

The file is walked without the package onnx, which programs that only run models need not have. Field numbers
are those of ``onnx.proto``.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bcq.checks.onnx_wire import Message, WireError
from bcq.errors import InputError
from bcq.files.inside import Stamp, inner_file, relative_name

MAX_DEPTH = 32  # nested branch and loop bodies; real models have one or two
_MAX_DIGITS = 19  # of a byte offset or length in 64 bits
_COPY_HINT = "Copy the model again, with its data file beside it."
_MAPPED_BYTES = 1 << 26
_KEYWORD = b"location"  # a message without this word holds no external tensor
# Messages that can hold tensors: kind -> field number -> kind of the field.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TENSOR_NAME, _TENSOR_EXTERNAL = 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


@dataclass(frozen=True)
class ExternalTensor:
    """One tensor whose bytes lie outside; ``fields`` as the file has them: location, offset, length ..."""

    name: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Range:
    """The bytes of one tensor in a data file; without a length up to wherever its shape leads."""

    tensor: str
    start: int
    length: int | None


def check_file(path: Path) -> list[Stamp]:
    """Checks all external data of a model file.

    Returns:
        Stamps of the model file and of each data file.

    Raises:
        InputError: E101 when data is missing, E103 when the file is no model or a place does not fit, E108
            when data lies where it must not.
    """
    own = Stamp.of(path)
    return [own, *check_places(external_tensors(path), path)]


def check_places(tensors: Iterable[ExternalTensor], path: Path) -> list[Stamp]:
    """Checks places of external data: inside the folder of ``path``, inside their file, none overlapping.

    Raises:
        InputError: as `check_file`.
    """
    stamps: dict[str, Stamp] = {}
    ranges: dict[str, list[Range]] = {}
    for tensor in tensors:
        who = f"tensor '{tensor.name}' of '{path}'"
        location = tensor.fields.get("location", "")
        name = str(relative_name(location, who))
        if name not in stamps:
            stamps[name] = inner_file(path.parent / name, path.parent, f"{who} has its data there")
        ranges.setdefault(name, []).append(_range(tensor, stamps[name], who))
    for name, found in ranges.items():
        _check_overlap(found, name, path)
    return list(stamps.values())


def external_tensors(path: Path) -> Iterator[ExternalTensor]:
    """Every tensor with external data, wherever in the model it is.

    Raises:
        InputError: E103 when the file is no sequence of protobuf fields, or nests too deeply.
    """
    if path.stat().st_size == 0:
        raise no_model(path)
    try:
        yield from _walk(_content(path), "model", path, 0)
    except WireError as fault:
        raise no_model(path) from fault


def _content(path: Path) -> memoryview:
    """The file's bytes; a large one, which holds its weights inside, is mapped."""
    if path.stat().st_size < _MAPPED_BYTES:
        return memoryview(path.read_bytes())
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # unmapped with the view


def _walk(message: memoryview, kind: str, path: Path, depth: int) -> Iterator[ExternalTensor]:
    if depth > 3 * MAX_DEPTH:  # a graph in a graph is three messages deeper
        raise InputError("E103", f"'{path}' nests graphs more than {MAX_DEPTH} deep.", "Export it again.")
    if kind == "tensor":
        yield from _tensor(Message(message), path)
        return
    fields = Message(message)
    for number, below in _INSIDE[kind].items():
        for value in fields.views(number):
            if below != "node" or _KEYWORD in bytes(value):
                yield from _walk(value, below, path, depth + 1)


def _tensor(message: Message, path: Path) -> Iterator[ExternalTensor]:
    name, fields = message.text(_TENSOR_NAME), dict[str, str]()
    for entry in message.messages(_TENSOR_EXTERNAL):
        key = entry.text(_ENTRY_KEY)
        if key in fields:
            raise InputError("E103", f"tensor '{name}' of '{path}' says its {key} twice.", "Export it again.")
        fields[key] = entry.text(_ENTRY_VALUE)
    if fields:
        yield ExternalTensor(name, fields)


def _range(tensor: ExternalTensor, stamp: Stamp, who: str) -> Range:
    start = _number(tensor.fields.get("offset", "0"), "offset", who)
    text = tensor.fields.get("length")
    length = None if text is None else _number(text, "length", who)
    if start + (length or 0) > stamp.size:
        raise InputError(
            "E103",
            f"'{stamp.path}' is cut short: {who} needs bytes up to {start + (length or 0):,}, "
            f"the file has {stamp.size:,}.",
            _COPY_HINT,
        )
    return Range(tensor.name, start, length)


def _number(text: str, what: str, who: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InputError(
            "E103", f"{who} has the {what} {text[:40]!r}, expected a number of bytes.", "Export it again."
        )
    return int(text)


def _check_overlap(ranges: list[Range], name: str, path: Path) -> None:
    """Tensors may share their bytes, but not a part of them."""
    known = {(each.start, each.length): each for each in ranges if each.length}
    for one, other in pairwise(sorted(known.values(), key=lambda each: (each.start, each.length or 0))):
        if one.start + (one.length or 0) > other.start:
            raise InputError(
                "E103",
                f"tensors '{one.tensor}' and '{other.tensor}' of '{path}' overlap in '{name}'.",
                "Export it again.",
            )


def no_model(path: Path) -> InputError:
    """The error for a file that does not parse as ONNX: hardly a damaged one when its name says otherwise."""
    if path.suffix != ".onnx":
        return InputError("E103", f"'{path}' is no ONNX model.", "Give a model folder or an .onnx file.")
    return InputError("E103", f"'{path}' is cut short or not an ONNX file.", _COPY_HINT)
