# SPDX-License-Identifier: Apache-2.0
"""The tensors of an export that a task may replace; ``adapters/slots.safetensors`` lists them.

A slot is a graph input with a default value. One that stands for several matrices (a fused product) holds
their rows side by side, so its default is kept here, too: a task may change only some of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import fused
from bcq.adapters.adapter import PARTS, Adapter, check_base
from bcq.errors import InputError
from bcq.files.inside import check_unchanged, inner_file
from bcq.files.safetensors_read import read_header, read_tensor
from bcq.files.safetensors_write import SPELLING, SafetensorsWriter, TensorSpec

FOLDER = "adapters"
SLOTS_FILE = "slots.safetensors"
FORMAT_VERSION = 1
DENSE = "dense"
MARK = "made_for_base_"  # an input of this name and the hash: other models refuse files that name it
MAX_BYTES = 1 << 30
_KEY = "bcq"
_AGAIN = "Export the model again."


@dataclass(frozen=True)
class Slot:
    """One graph input with a default.

    Attributes:
        name: of the graph input.
        part: ``alpha_1``, ``alpha_rest`` or ``offset``, in the layout of the operators, or ``dense``.
        owners: name in the base and rows of each matrix in it, in order; of a dense tensor only its name
            counts.
        dtype: ``float16`` or ``float32``.
        shape: of the input.
        default: the base's values where several matrices share the slot; None for one.
    """

    name: str
    part: str
    owners: tuple[tuple[str, int], ...]
    dtype: str
    shape: tuple[int, ...]
    default: NDArray[Any] | None = None

    def value(self, adapter: Adapter) -> NDArray[Any] | None:
        """What a task puts here; None when it keeps the base's values.

        Raises:
            InputError: E302 when its tensor has another shape.
        """
        found = [self._of(adapter, stored, rows) for stored, rows in self.owners]
        if all(array is None for array in found):
            return None
        value = found[0] if self.default is None else self._joined(self.default, found)
        assert value is not None
        return np.ascontiguousarray(value, self.dtype)

    def _of(self, adapter: Adapter, stored: str, rows: int) -> NDArray[Any] | None:
        """A task's values for one owner, in the layout of the slot."""
        if self.part == DENSE:
            value = adapter.dense.get(stored)
            expected = self.shape
        else:
            alphas = adapter.alphas.get(stored)
            plain = None if alphas is None else alphas.tensors().get(self.part)
            if plain is not None and plain.shape[-2] != rows:
                raise _misfit(adapter, stored, f"{plain.shape[-2]} rows, expected {rows}")
            value = None if alphas is None or plain is None else alphas.tiled()[self.part]
            expected = (-(-rows // fused.TILE), *self.shape[1:])
        if value is not None and value.shape != expected:
            raise _misfit(adapter, stored, f"shape {list(value.shape)}, expected {list(expected)}")
        return value

    def _joined(self, default: NDArray[Any], found: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
        """The rows of every owner: the task's where it has some, else the base's."""
        rows = [count for _, count in self.owners]
        parts = fused.parts_of([stored for stored, _ in self.owners], rows)
        whole = [
            fused.take_rows(default, part.first, part.rows) if array is None else array
            for part, array in zip(parts, found, strict=True)
        ]
        return fused.join_rows(whole, rows)


@dataclass(frozen=True)
class Slots:
    """Every slot of an export.

    Attributes:
        base_hash: of the base that it was made of.
        slots: in the order of the graph's inputs.
    """

    base_hash: str
    slots: tuple[Slot, ...]

    def values(self, adapter: Adapter) -> dict[str, NDArray[Any]]:
        """A task's values by the names of the graph inputs; inputs that it leaves alone are not among them.

        Raises:
            InputError: E301 for an adapter of another base, E302 for a shape that differs, E303 for a tensor
                of the adapter that the graph has no slot for.
        """
        check_base(adapter.name, adapter.base_hash, self.base_hash)
        self._check_covered(adapter)
        found = {slot.name: slot.value(adapter) for slot in self.slots}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def mark(self) -> str:
        """Name of the unused input that only exports of the same base have."""
        return MARK + self.base_hash

    def _check_covered(self, adapter: Adapter) -> None:
        """A tensor without a slot would be ignored without a word."""
        covered = {(slot.part, stored) for slot in self.slots for stored, _ in slot.owners}
        held = {(part, stored) for stored in adapter.alphas for part in adapter.alphas[stored].tensors()}
        held |= {(DENSE, name) for name in adapter.dense}
        for part, stored in sorted(held - covered):
            raise InputError(
                "E303",
                f"adapter '{adapter.name}' changes {part} of '{stored}', which this export cannot swap.",
                "Export again with this adapter among --adapters.",
            )

    def write(self, folder: Path) -> None:
        """Writes ``slots.safetensors``; the same slots give the same bytes."""
        described = {
            "format_version": FORMAT_VERSION,
            "base_hash": self.base_hash,
            "slots": [
                [slot.name, slot.part, [list(owner) for owner in slot.owners], slot.dtype, list(slot.shape)]
                for slot in self.slots
            ],
        }
        defaults = {slot.name: slot.default for slot in self.slots if slot.default is not None}
        specs = {
            name: TensorSpec(SPELLING[array.dtype.name], array.shape) for name, array in defaults.items()
        }
        notes = {_KEY: json.dumps(described, separators=(",", ":"))}
        with SafetensorsWriter(folder / SLOTS_FILE, specs, notes) as writer:
            for name, array in defaults.items():
                writer.write(name, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())

    @classmethod
    def read(cls, folder: Path) -> Slots:
        """Reads ``slots.safetensors`` of a folder ``adapters`` that anyone may have made.

        Raises:
            InputError: E101 when it is missing, E103 damaged, E108 a link that leaves the folder, E109 when
                what it says is not a list of slots.
        """
        file = folder / SLOTS_FILE
        stamp = inner_file(file, folder.parent, "it lists what adapters may replace")
        header = read_header(file)
        try:
            described = json.loads(header.metadata[_KEY])
            if type(described["format_version"]) is not int or described["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version is {described['format_version']!r}")
            base_hash, entries = described["base_hash"], described["slots"]
            if not isinstance(base_hash, str) or not isinstance(entries, list):
                raise ValueError("base_hash is no text, or slots no list")
            slots = [_slot(*entry) for entry in entries]
            _check_defaults(slots, header.tensors)
        except (ValueError, TypeError, KeyError, RecursionError) as fault:
            raise InputError("E109", f"{file} does not list slots: {fault}.", _AGAIN) from fault
        read = tuple(
            Slot(**{**vars(slot), "default": read_tensor(header.tensors[slot.name])})
            if len(slot.owners) > 1
            else slot
            for slot in slots
        )
        check_unchanged([stamp])
        return cls(base_hash, read)


def _misfit(adapter: Adapter, stored: str, detail: str) -> InputError:
    return InputError("E302", f"adapter '{adapter.name}' does not fit: values for '{stored}' have {detail}.")


def _slot(name: Any, part: Any, owners: Any, dtype: Any, shape: Any) -> Slot:
    """One entry of the list.

    Raises:
        ValueError: when it is not one.
    """
    sizes = isinstance(shape, list) and all(type(size) is int and 0 <= size < 1 << 31 for size in shape)
    if not isinstance(name, str) or part not in (*PARTS, DENSE) or dtype not in SPELLING or not sizes:
        raise ValueError(f"got {str([name, part, dtype, shape])[:200]}")
    if not isinstance(owners, list) or not owners or not all(map(fused.is_entry, owners)):
        raise ValueError(f"'{name[:80]}' has the owners {str(owners)[:200]}")
    if len(owners) > 1 and (part == DENSE or len(shape) != (4 if part == "alpha_rest" else 3)):
        raise ValueError(f"'{name[:80]}' of several matrices has the shape {shape}")
    return Slot(name, part, tuple((stored, rows) for stored, rows in owners), dtype, tuple(shape))


def _check_defaults(slots: Sequence[Slot], stored: dict[str, Any]) -> None:
    """Exactly the shared slots have a default, of their own type and shape, that holds all their rows."""
    shared = {slot.name: slot for slot in slots if len(slot.owners) > 1}
    if len({slot.name for slot in slots}) < len(slots) or set(shared) != set(stored):
        raise ValueError("names occur twice, or defaults are missing or too many")
    for name, slot in shared.items():
        entry = stored[name]
        if (entry.dtype, entry.shape) != (SPELLING[slot.dtype], slot.shape):
            raise ValueError(f"'{name}' is {entry.dtype}{list(entry.shape)}")
        rows = sum(count for _, count in slot.owners)
        if slot.shape[-1] != fused.TILE or slot.shape[0] != -(-rows // fused.TILE):
            raise ValueError(f"'{name}' has the shape {list(slot.shape)} for {rows} rows")
    if sum(math.prod(slot.shape) for slot in shared.values()) * 4 > MAX_BYTES:
        raise ValueError("its defaults are too large")
