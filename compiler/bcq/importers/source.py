# SPDX-License-Identifier: Apache-2.0
"""What every importer hands over: quantized matrices by name, with scales and planes to be read later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import contract
from bcq.bcq import Words
from bcq.errors import InputError, UnsupportedError
from bcq.files.checkpoint import Checkpoint
from bcq.importers.factors import Scales

_WORDS = {"I32": "<u4", "U32": "<u4"}
_NUMBERS = {"I32": "<i4", "I64": "<i8"}
_AGAIN = "Copy the checkpoint again, or save it again with the program that made it."


@dataclass(frozen=True)
class SourceMatrix:
    """One quantized matrix of another format.

    Attributes:
        name: of the parameter that it stands for, as the checkpoint would call it, such as ``x.weight``.
        rows: N.
        inputs: K.
        bits: q, planes of the source.
        group_size: g.
        tensors: names of the tensors that make it up.
        read_scales: gives its factors.
        read_words: gives its planes, uint32 ``[q, N, ceil(K / 32)]``.
    """

    name: str
    rows: int
    inputs: int
    bits: int
    group_size: int
    tensors: tuple[str, ...]
    read_scales: Callable[[], Scales]
    read_words: Callable[[], Words]


Matrices = dict[str, SourceMatrix]


def stems(checkpoint: Checkpoint) -> list[str]:
    """What stands before ``.qweight`` in the names of the tensors, sorted."""
    return [name.removesuffix(".qweight") for name in checkpoint.names() if name.endswith(".qweight")]


def words(checkpoint: Checkpoint, name: str, shape: tuple[int, ...] | None = None) -> NDArray[np.uint32]:
    """A tensor of words of 32 bits, whatever sign it is stored with.

    Raises:
        InputError: E107 when it is missing, E102 when it holds something else, E103 for another shape.
    """
    return _integers(checkpoint, name, shape, _WORDS)


def numbers(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    """A tensor of integers.

    Raises:
        InputError: E107 when it is missing, E102 when it holds something else.
    """
    return _integers(checkpoint, name, None, _NUMBERS)


def _integers(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...] | None, kinds: dict[str, str]
) -> NDArray[Any]:
    entry = checkpoint.entry(name)
    if entry.dtype not in kinds:
        raise InputError("E102", f"{name}: got dtype {entry.dtype}, expected {' or '.join(kinds)}.", _AGAIN)
    if shape is not None:
        check_shape(checkpoint, name, shape)
    return np.frombuffer(checkpoint.raw(name), kinds[entry.dtype]).reshape(entry.shape)


def floats(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A tensor of floating-point numbers.

    Raises:
        InputError: E107 when it is missing, E102 when it holds something else, E103 for another shape.
    """
    check_shape(checkpoint, name, shape)
    return checkpoint.read(name)


def check_shape(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    """Raises InputError E103 unless the tensor has the shape."""
    got = checkpoint.shape(name)
    if got != shape:
        raise InputError("E103", f"{name}: got the shape {list(got)}, expected {list(shape)}.", _AGAIN)


def check_rank(checkpoint: Checkpoint, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that must have `rank` axes, none of them empty; else InputError E103."""
    shape = checkpoint.shape(name)
    if len(shape) != rank or 0 in shape:
        raise InputError(
            "E103", f"{name}: got the shape {list(shape)}, expected {rank} sizes above 0.", _AGAIN
        )
    return shape


def check_group_size(name: str, group_size: int, inputs: int) -> None:
    """Refuses groups that the operators do not have.

    Raises:
        UnsupportedError: E401.
    """
    multiple = contract.GROUP_SIZE_MULTIPLE
    if group_size != inputs and (group_size < 1 or group_size % multiple):
        raise UnsupportedError(
            "E401",
            f"'{name}' has groups of {group_size} inputs; the operators take multiples of {multiple}, or one "
            "group a row, because 32 signs share a word and its factors.",
            f"Quantize again with groups of {multiple} or more.",
        )


def setting(section: dict[str, Any], key: str, default: Any, kinds: tuple[type, ...], where: str) -> Any:
    """A value of a description in JSON.

    Raises:
        InputError: E102 when it has another type.
    """
    value = section.get(key, default)
    if value is default:
        return value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise InputError("E102", f"{where}: {key} is {value!r}, expected {expected}.", _AGAIN)
    return value
