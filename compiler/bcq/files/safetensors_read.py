# SPDX-License-Identifier: Apache-2.0
"""Reads the header of a safetensors file and refuses everything that the format does not allow.

Format: https://github.com/huggingface/safetensors (8 bytes little-endian header length, JSON, then the
tensors back to back).
"""

from __future__ import annotations

import json
import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.errors import InputError

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 16
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_FLOATS = {"F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: ``nbytes`` bytes at ``offset`` in ``file``; dtype as the format spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """All tensors of one file, in the order in which they lie, and its free text metadata."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """Reads and checks the header of ``file``; no tensor is read.

    Raises:
        InputError: E101 when the file is missing, E103 when it is damaged, E108 when it is not a regular
            file.
    """
    size = _regular_size(file)
    with file.open("rb") as stream:
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8:
            raise _damaged(file, f"it has {size} bytes, a header needs at least 8.")
        if length > MAX_HEADER_BYTES or 8 + length > size:
            raise _damaged(
                file, f"the header promises {length:,} bytes of description, the file has {size:,}."
            )
        declared = _json(file, stream.read(length))
    metadata = declared.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(file, "__metadata__ is not a map of strings.")
    tensors = [_tensor(file, name, entry, 8 + length) for name, entry in declared.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_extent(file, tensors, 8 + length, size)
    return Header({tensor.name: tensor for tensor in tensors}, metadata)


def read_tensor(entry: StoredTensor) -> NDArray[Any]:
    """A float16 or float32 tensor.

    Raises:
        InputError: E102 for another type, E103 when the file shrank since its header was read.
    """
    if entry.dtype not in _FLOATS:
        raise InputError("E102", f"{entry.name}: got dtype {entry.dtype}, expected F16 or F32.")
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        data = stream.read(entry.nbytes)
    if len(data) != entry.nbytes:
        raise InputError(
            "E103", f"{entry.file.name} was cut short while {entry.name!r} was read.", "Copy it again."
        )
    return np.frombuffer(data, _FLOATS[entry.dtype]).reshape(entry.shape)


def _regular_size(file: Path) -> int:
    try:
        status = file.stat()
    except OSError as fault:
        raise InputError("E101", f"{file} cannot be read: {fault.strerror}.") from fault
    if not stat.S_ISREG(status.st_mode):
        raise InputError("E108", f"{file} is not a regular file.")
    return status.st_size


def _json(file: Path, text: bytes) -> dict[str, Any]:
    try:
        declared = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as fault:
        raise _damaged(file, f"the header is not valid JSON ({fault}).") from fault
    if not isinstance(declared, dict):
        raise _damaged(file, "the header is not a JSON object.")
    return declared


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _tensor(file: Path, name: str, entry: Any, start: int) -> StoredTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"tensor {name!r} needs dtype, shape and data_offsets, no more and no less.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _damaged(file, f"tensor {name!r} has the unknown dtype {dtype!r}.")
    if not _sizes(shape) or len(shape) > MAX_RANK:
        raise _damaged(file, f"tensor {name!r} has the shape {shape!r}.")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(file, f"tensor {name!r} has the data_offsets {offsets!r}.")
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise _damaged(
            file, f"tensor {name!r} of {dtype}{shape} needs {nbytes:,} bytes, its data_offsets are {offsets}."
        )
    return StoredTensor(name, dtype, tuple(shape), file, start + offsets[0], nbytes)


def _check_extent(file: Path, tensors: list[StoredTensor], start: int, size: int) -> None:
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            raise _damaged(
                file,
                f"tensor {tensor.name!r} begins at byte {tensor.offset:,}, expected {end:,}.",
            )
        end += tensor.nbytes
    if end > size:
        raise InputError(
            "E103",
            f"{file.name} is cut short: the header promises {end:,} bytes, the file has {size:,}.",
            "Copy it again.",
        )
    if end < size:
        raise _damaged(file, f"the header promises {end:,} bytes, the file has {size:,}.")


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _damaged(file: Path, detail: str) -> InputError:
    return InputError("E103", f"{file.name} is damaged: {detail}", "Copy or download it again.")
