# SPDX-License-Identifier: Apache-2.0
"""Writes a safetensors file tensor by tensor: shapes first, so that one tensor is in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from bcq.files.safetensors_read import ITEM_BYTES

HEADER_ALIGNMENT = 8
SPELLING = {"float16": "F16", "float32": "F32"}  # NumPy's names of the floats that adapters hold


@dataclass(frozen=True)
class TensorSpec:
    """Type (as safetensors spells it) and shape of a tensor to come."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class SafetensorsWriter:
    """Context manager over one file; tensors must come in the order of ``specs``, all of them.

    Args:
        path: file to create.
        specs: name to type and shape, in the order of writing.
        metadata: text pairs; may be replaced at the end by :meth:`replace_metadata`, at equal length.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> None:
        self._specs = dict(specs)
        self._left = list(self._specs)
        self._header = _header(self._specs, metadata)
        self._stream: BinaryIO = path.open("wb")
        self._stream.write(self._header)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Appends one tensor, little-endian and contiguous.

        Raises:
            ValueError: when it is not the next one, or its size is not the announced one.
        """
        expected = self._left[0] if self._left else None
        if name != expected:
            raise ValueError(f"got tensor {name!r}, expected {expected!r}")
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if size != self._specs[name].nbytes:
            raise ValueError(f"{name}: got {size} bytes, expected {self._specs[name].nbytes}")
        self._stream.write(data)
        del self._left[0]

    def replace_metadata(self, metadata: Mapping[str, str]) -> None:
        """Writes the header again with other metadata of the same length, for values known only at the end.

        Raises:
            ValueError: when the header would change its length.
        """
        header = _header(self._specs, metadata)
        if len(header) != len(self._header):
            raise ValueError(f"header: got {len(header)} bytes, expected {len(self._header)}")
        self._stream.seek(0)
        self._stream.write(header)
        self._stream.seek(0, 2)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if kind is None and self._left:
            raise ValueError(f"{len(self._left)} tensors were not written, first {self._left[0]!r}")


def _header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    declared: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.nbytes
        declared[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(declared, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
