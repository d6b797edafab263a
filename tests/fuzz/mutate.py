# SPDX-License-Identifier: Apache-2.0
"""Changes of files that keep them readable, so that a change reaches the checks behind the parser."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from bcq.checks import onnx_wire
from bcq.checks.onnx_wire import WireError

Flip = Callable[[bytes], bytes]
_SUBSTITUTES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 2, 3, 16, 32, 33, 2**31 - 1, 2**31, 2**53, 2**62, 2**63, 2**64, 10**30, -(2**63),
    0.5, 1e308, float("inf"), "", "a", "F16", "U8", "BF16", "../x", "/etc/passwd", "\x00", "\ud800",
    "line\nbreak", "x" * 3000, "h.0.weight", [], {}, [[]], [0, 0], ["a", "a"], {"a": {}},
)  # fmt: skip
# Fields of an ONNX file that are messages: kind -> field number -> kind of the field.
_BELOW = {
    "model": {7: "graph", 8: "plain", 14: "plain", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "plain", 12: "plain"},
    "function": {7: "node", 9: "plain"},
    "node": {5: "attribute", 9: "plain"},
    "attribute": {5: "tensor", 6: "graph"},
    "tensor": {13: "plain"},
}  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 16, 32, 255, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1)


def changed(form: str, content: bytes, draw: random.Random, flip: Flip) -> bytes:
    """One to four changes of a file.

    Args:
        form: as in `fuzz.places.Place`.
        content: of the file.
        draw: decides what changes.
        flip: changes mere bytes.
    """
    change = {"json": _json, "safetensors": _safetensors, "onnx": _onnx, "lines": _lines}[form]
    for _ in range(draw.randint(1, 4)):
        try:
            content = flip(content) if draw.random() < 0.1 else change(content, draw, flip)
        except (ValueError, RecursionError):  # it does not parse any more
            content = flip(content)
    return content


def _json(content: bytes, draw: random.Random, flip: Flip) -> bytes:
    return json.dumps(_value(json.loads(content), draw, flip)).encode()


def _lines(content: bytes, draw: random.Random, flip: Flip) -> bytes:
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    lines[at] = _json(lines[at], draw, flip) if lines[at][:1] in (b"{", b'"') else flip(lines[at])
    return b"\n".join(lines)


def _safetensors(content: bytes, draw: random.Random, flip: Flip) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if draw.random() < 0.2:
        data = flip(data)
    else:
        header = _json(header, draw, flip)
    return len(header).to_bytes(8, "little") + header + data


def _value(value: Any, draw: random.Random, flip: Flip) -> Any:
    """A JSON value with one change somewhere inside; a text that is JSON itself is changed inside, too."""
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        return _inside(value, draw, flip)
    if isinstance(value, str) and value[:1] in ("{", "[") and draw.random() < 0.9:
        return _json(value.encode("utf-8", "surrogatepass"), draw, flip).decode()
    if type(value) is int and draw.random() < 0.5:
        return draw.choice((value + 1, value - 1, -value, value * 2, value + 2**32, float(value), str(value)))
    if isinstance(value, str) and draw.random() < 0.4:
        return flip(value.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    return draw.choice(_SUBSTITUTES)


def _inside(value: dict[str, Any] | list[Any], draw: random.Random, flip: Flip) -> Any:
    """A copy of an object or list with one entry changed, gone, doubled or renamed."""
    entries: list[tuple[Any, Any]] = list(value.items() if isinstance(value, dict) else enumerate(value))
    at, how = draw.randrange(len(entries)), draw.random()
    name, inner = entries[at]
    if how < 0.75:
        entries[at] = (name, _value(inner, draw, flip))
    elif how < 0.85:
        del entries[at]
    elif how < 0.92:
        entries[at] = (draw.choice(entries)[0], inner)
    else:
        entries.append((str(_value(str(name), draw, flip)), inner))
    return dict(entries) if isinstance(value, dict) else [entry for _, entry in entries]


def _onnx(content: bytes, draw: random.Random, flip: Flip, kind: str = "model") -> bytes:
    """The same for fields of messages; lengths of all messages around the change are written anew."""
    fields = list(onnx_wire.fields(memoryview(content)))
    if not fields:
        raise WireError("nothing to change")
    at, how = draw.randrange(len(fields)), draw.random()
    number, value = fields[at]
    below = _BELOW.get(kind, {}).get(number)
    if isinstance(value, int):
        fields[at] = (number, draw.choice((*_NUMBERS, value + 1)))
    elif below and how < 0.85:
        fields[at] = (number, _below(bytes(value), draw, flip, below))
    elif how < 0.9:
        fields[at] = (number, memoryview(_text(bytes(value), draw, flip)))
    if how > 0.97:
        fields[at] = (draw.randint(1, 26), value)
    elif how > 0.94:
        fields.insert(draw.randrange(len(fields)), fields[at])
    elif how > 0.9:
        del fields[at]
    return b"".join(_field(number, value) for number, value in fields)


def _below(content: bytes, draw: random.Random, flip: Flip, kind: str) -> memoryview:
    """A message inside another; what is none is changed as mere bytes."""
    try:
        return memoryview(_onnx(content, draw, flip, kind))
    except WireError:
        return memoryview(flip(content))


def _text(value: bytes, draw: random.Random, flip: Flip) -> bytes:
    if value.isdigit() and draw.random() < 0.8:
        return str(draw.choice((*_NUMBERS, int(value) + 1))).encode()
    return flip(value)


def _field(number: int, value: onnx_wire.Value) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + bytes(value)


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
