# SPDX-License-Identifier: Apache-2.0
"""A task's own scaling factors, and what else it trained, bound to the codes of one base.

Source: Kwon et al. 2022 (arXiv 2210.03858), section 3: codes are shared by all tasks, alpha_1 is the task's.
A folder looks as PEFT's do: ``adapter_config.json`` and ``adapter_model.safetensors``; it takes kilobytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bcq import fused
from bcq.bcq import Float16, ceil_div
from bcq.errors import InputError, UsageError
from bcq.packing import PackedWeight

if TYPE_CHECKING:
    from bcq.files.base import BaseMatrix, QuantizedBase

PARTS = ("alpha_1", "alpha_rest", "offset")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_AGAIN = "Train or copy the adapter again."


@dataclass(frozen=True)
class Alphas:
    """One matrix's factors in a task, in plain order; None means: as in the base.

    Attributes:
        alpha_1: float16 ``[N, G]``.
        alpha_rest: float16 ``[q-1, N, G]``, or None.
        offset: float16 ``[N, G]``, or None.
    """

    alpha_1: Float16
    alpha_rest: Float16 | None = None
    offset: Float16 | None = None

    def tensors(self) -> dict[str, Float16]:
        """What is there, by its name in the operator contract."""
        parts = {part: getattr(self, part) for part in PARTS}
        return {part: array for part, array in parts.items() if array is not None}

    def tiled(self) -> dict[str, Float16]:
        """What is there in the layout of the operators, ``[T, G, 16]`` and ``[T, G, q-1, 16]``."""
        plain = self.tensors()
        if "alpha_rest" in plain:
            plain["alpha_rest"] = plain["alpha_rest"].transpose(1, 2, 0)
        return {part: fused.tiled(array) for part, array in plain.items()}

    def applied(self, packed: PackedWeight) -> PackedWeight:
        """A packed matrix with these factors in the place of its own; the codes are shared, not copied."""
        tensors = {**packed.tensors(), **self.tiled()}
        return PackedWeight(**tensors, inputs=packed.inputs, rows=packed.rows, group_size=packed.group_size)


@dataclass(frozen=True)
class Adapter:
    """What one task changes in a quantized base.

    Attributes:
        name: the task; letters, digits, ``.``, ``_`` and ``-``, at most 64.
        base_hash: `bcq.files.base.QuantizedBase.base_hash` of the base that it was made for.
        alphas: factors by the name that the base stores a matrix under.
        dense: float16 or float32 tensors that replace dense ones of the base (biases, normalizations), by
            their names in the checkpoint.
        metadata: what made it, as JSON values: task, method, steps and so on.

    Raises:
        UsageError: E202 for a name or hash that is not one.
        InputError: E106 for a value that is NaN or infinite, E302 for a type or rank that cannot be right,
            E304 when it changes nothing.
    """

    name: str
    base_hash: str
    alphas: Mapping[str, Alphas]
    dense: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        if _HASH.fullmatch(self.base_hash) is None:
            raise UsageError("E202", f"base_hash: got {self.base_hash[:80]!r}, expected 64 hex digits.")
        if not self.alphas and not self.dense:
            raise InputError("E304", f"adapter '{self.name}' changes nothing: it holds no tensor.", _AGAIN)
        factors = {f"{stored}.{part}" for stored, found in self.alphas.items() for part in found.tensors()}
        for name in sorted(factors & set(self.dense)):
            raise self._misfit(f"'{name}' is both a factor and a dense tensor")
        for tensor, array in self.tensors().items():
            self._check_tensor(tensor, array)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Every tensor by the name it has in the file: ``X.alpha_1``, ``X.alpha_rest``, ``X.offset`` ..."""
        found: dict[str, NDArray[Any]] = {}
        for stored in sorted(self.alphas):
            for part, array in self.alphas[stored].tensors().items():
                found[f"{stored}.{part}"] = array
        return found | {name: self.dense[name] for name in sorted(self.dense)}

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return sum(array.size for array in self.tensors().values())

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(array.nbytes for array in self.tensors().values())

    def save(self, folder: str | Path) -> None:
        """Writes the folder; it appears whole or not at all, and the same adapter gives the same bytes.

        Raises:
            UsageError: E203 when something else lies there.
            ResourceError: E601 when the disk refuses.
        """
        from bcq.adapters.folder import write

        write(self, Path(folder))

    @classmethod
    def open(cls, folder: str | Path) -> Adapter:
        """Reads a folder that anyone may have made; nothing in it is executed.

        Raises:
            InputError: E101 no such folder, E102 not an adapter of this kind or a field that is wrong, E103
                damaged, E104 pickle, E106 NaN or infinite, E108 a link that leaves the folder, E302 a tensor
                of a wrong type or rank, or one that the configuration does not name, E304 an empty one.
        """
        from bcq.adapters.folder import read

        return read(Path(folder))

    def check_fits(self, base: QuantizedBase) -> None:
        """Refuses an adapter that was made for another base, or does not fit its matrices.

        Raises:
            InputError: E301 with both hashes for another base; E302 for a matrix or tensor that the base does
                not have, or whose shape differs.
        """
        check_base(self.name, self.base_hash, base.base_hash)
        for stored, alphas in self.alphas.items():
            matrix = base.matrices.get(stored)
            if matrix is None:
                raise self._misfit(f"it has factors for '{stored}', which the base holds no matrix of")
            if alphas.offset is not None and not matrix.offset:
                raise self._misfit(f"it has offsets for '{stored}', which has none in the base")
            for part, array in alphas.tensors().items():
                self._check_shape(f"{stored}.{part}", array.shape, _plain_shape(matrix, part))
        dense = set(base.dense_names())
        for name, array in self.dense.items():
            if name not in dense:
                raise self._misfit(f"it replaces '{name}', which the base holds no dense tensor of")
            self._check_shape(name, array.shape, base.checkpoint.shape(name))
            if not base.checkpoint.is_float(name):
                raise self._misfit(f"it replaces '{name}', which holds {base.checkpoint.dtype(name)}")

    def _check_shape(self, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if got != expected:
            raise self._misfit(f"'{name}' has shape {list(got)}, expected {list(expected)}")

    def _check_tensor(self, name: str, array: NDArray[Any]) -> None:
        part = name.rpartition(".")[2] if name not in self.dense else ""
        allowed = ("float16",) if part else ("float16", "float32")
        if array.dtype.name not in allowed:
            raise self._misfit(f"'{name}' has type {array.dtype}, expected {' or '.join(allowed)}")
        rank = {"": array.ndim, "alpha_rest": 3}.get(part, 2)
        if array.ndim != rank:
            raise self._misfit(f"'{name}' has shape {list(array.shape)}, expected {rank} dimensions")
        if not np.isfinite(array).all():
            raise InputError("E106", f"adapter '{self.name}': '{name}' holds NaN or infinite values.", _AGAIN)

    def _misfit(self, detail: str) -> InputError:
        return InputError("E302", f"adapter '{self.name}' does not fit: {detail}.", _AGAIN)


def check_name(name: str) -> None:
    """Raises UsageError E202 for a task name that could not be a folder's."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise UsageError(
            "E202",
            f"adapter name: got {str(name)[:80]!r}, expected letters, digits, '.', '_' and '-', at most 64.",
        )


def check_base(name: str, made_for: str, present: str) -> None:
    """Refuses an adapter on another base.

    Raises:
        InputError: E301 with both hashes.
    """
    if made_for != present:
        raise InputError(
            "E301",
            f"adapter '{name}' was made for base {made_for}, this model is {present}.",
            "Use the base that it was trained on: codes must be equal, bit by bit.",
        )


def _plain_shape(matrix: BaseMatrix, part: str) -> tuple[int, ...]:
    """The shape that a part of a matrix has in plain order."""
    plain = (matrix.rows, ceil_div(matrix.inputs, matrix.group_size))
    return (matrix.bits - 1, *plain) if part == "alpha_rest" else plain
