# SPDX-License-Identifier: Apache-2.0
"""How a tensor of an ``.onnx`` file is stored: sizes that exist, data in one place, of the right length."""

from __future__ import annotations

import math
from pathlib import Path

from bcq.checks.onnx_wire import Message
from bcq.errors import InputError

_LARGEST = 2**63 - 1  # bytes
_EXTERNAL = 1
_STRING = 8
# Bits of an element by ONNX data type; types that are not listed are ONNX Runtime's to judge.
_BITS = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    7: 64,
    9: 8,
    10: 16,
    11: 64,
    12: 32,
    13: 64,
    16: 16,
    21: 4,
    22: 4,
}
_WIDEST = 128
# float_data, int32_data, string_data, int64_data, raw_data, double_data, uint64_data
_DATA_FIELDS = (4, 5, 6, 7, 9, 10, 11)
_AGAIN = "The file is damaged or was not made by this project: export the model again."


def printable(text: str, longest: int = 200) -> str:
    """Text of a file as it may stand in a message: short, one line, no control characters."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:longest])
    return shown + ("..." if len(text) > longest else "")


def refuse(path: Path, where: str, what: str, got: str, expected: str) -> InputError:
    """The error of a malformed node (E109) or tensor (E103)."""
    code = "E103" if where.startswith(("tensor", "initializer")) else "E109"
    text = f"{printable(where, 300)}: {printable(what)}: got {printable(got)}, expected {expected}."
    return InputError(code, f"{path}: {text}", _AGAIN)


def check_tensor(path: Path, tensor: Message) -> None:
    """Checks one initializer.

    Raises:
        InputError: E103 when its sizes are impossible, its data lie in two places or are said to lie nowhere.
    """
    where, dims = f"tensor '{tensor.text(8)}'", tensor.numbers(1)
    if any(size < 0 for size in dims):
        raise refuse(path, where, "shape", str(dims), "no negative size")
    count, kind = math.prod(dims), tensor.number(2)
    if math.prod(size for size in dims if size) * _WIDEST > _LARGEST:
        raise refuse(path, where, "shape", str(dims), "a tensor that fits in memory")
    if kind == 0:
        raise refuse(path, where, "element type", "none", "one")
    stored = [field for field in _DATA_FIELDS if tensor.has(field)]
    if tensor.number(14) == _EXTERNAL:
        if stored:
            raise refuse(path, where, "data", "both external and inside the model", "one place")
        if kind in _BITS:
            _check_length(path, where, tensor, (count * _BITS[kind] + 7) // 8)
    elif len(stored) > 1:
        raise refuse(path, where, "data", "two fields", "one")
    elif kind != _STRING and count > 0 and not stored:
        raise refuse(path, where, "data", "none", f"{count} elements")


def _check_length(path: Path, where: str, tensor: Message, expected: int) -> None:
    """The length of external data, where one is given, fits the shape; the place is checked elsewhere."""
    for entry in tensor.messages(13):
        if entry.text(1) == "length" and entry.text(2) != str(expected):
            raise refuse(
                path, where, "external data length", f"'{entry.text(2)}'", f"{expected} for its shape"
            )
