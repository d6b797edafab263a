# SPDX-License-Identifier: Apache-2.0
"""The few messages of an ``.onnx`` file that a check of its nodes needs, read without the ``onnx`` package.

Running a packed model must not import ``onnx``. Only the wire format is read here: tensors stay unread memory
of a mapped file, and what is not asked for is skipped by its length.
"""

from __future__ import annotations

from collections.abc import Iterator

Bytes = bytes | memoryview
Value = int | memoryview
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_LONGEST = 10  # bytes of a varint


class WireError(ValueError):
    """The bytes are no protocol buffer."""


class Message:
    """The fields of one message by number; a field that appears again adds to the list."""

    def __init__(self, data: Bytes) -> None:
        self._fields: dict[int, list[Value]] = {}
        for number, value in fields(memoryview(data)):
            self._fields.setdefault(number, []).append(value)

    def has(self, *numbers: int) -> bool:
        """Whether any of the fields is there."""
        return any(number in self._fields for number in numbers)

    def number(self, field: int) -> int:
        """A signed integer; the last one counts, 0 where there is none."""
        value = self._fields.get(field, [0])[-1]
        if not isinstance(value, int):
            raise WireError("expected an integer")
        return _signed(value)

    def numbers(self, field: int) -> list[int]:
        """A repeated integer, packed or not."""
        found: list[int] = []
        for value in self._fields.get(field, []):
            found.extend([value] if isinstance(value, int) else _varints(value))
        return [_signed(value) for value in found]

    def views(self, field: int) -> list[memoryview]:
        """A repeated field of bytes."""
        values = self._fields.get(field, [])
        views = [value for value in values if not isinstance(value, int)]
        if len(views) != len(values):
            raise WireError("expected bytes")
        return views

    def text(self, field: int) -> str:
        """A string; the last one counts. What is no UTF-8 is replaced."""
        views = self.views(field)
        return str(views[-1], "utf-8", "replace") if views else ""

    def texts(self, field: int) -> list[str]:
        """A repeated string."""
        return [str(view, "utf-8", "replace") for view in self.views(field)]

    def messages(self, field: int) -> list[Message]:
        """A repeated message."""
        return [Message(view) for view in self.views(field)]

    def merged(self, field: int) -> Message:
        """A single message; its pieces, where there are more, are one message together."""
        views = self.views(field)
        return Message(views[0] if len(views) == 1 else b"".join(views))


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of every field of a message, in order."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _varint(data, at) if kind == _BYTES else (_FIXED.get(kind, -1), at)
        if size < 0 or size > end - at:
            raise WireError("a field is longer than its message, or of an unknown kind")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(data[at : at + _LONGEST]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise WireError("an integer has no end")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value
