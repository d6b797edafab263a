# SPDX-License-Identifier: Apache-2.0
"""A quantized base: a Hugging Face folder whose matrices are stored in the layout of the operators.

Matrix ``X`` is stored as the tensors ``X.codes``, ``X.alpha_1``, ``X.alpha_rest`` and ``X.offset`` of
``ops/README.md``; a further precision of 2 bits that reads the same codes adds ``X.2bit.alpha_1`` and so on.
Every other tensor is as it was. What a reader needs besides stands as JSON under
``bcq`` in the metadata of ``model.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import contract
from bcq.bcq import ceil_div, check_group_size
from bcq.errors import InputError
from bcq.files.checkpoint import SINGLE, Checkpoint
from bcq.files.safetensors_write import TensorSpec
from bcq.packing import PackedWeight

METADATA_KEY = "bcq"
_DTYPES = {"codes": "U32", "alpha_1": "F16", "alpha_rest": "F16", "offset": "F16"}
_FACTORS = ("alpha_1", "alpha_rest", "offset")
_NUMPY = {"U32": "<u4", "F16": "<f2"}


@dataclass(frozen=True)
class BaseMatrix:
    """What the metadata says about one packed matrix.

    Attributes:
        stored: its name in the checkpoint, the prefix of its four tensors.
        name: its parameter name in the model's class.
        kind: as in :class:`bcq.matrices.find.MatrixInfo`.
        rows: N.
        inputs: K.
        bits: q.
        group_size: g.
        offset: whether its groups have offsets.
        transposed: whether the original checkpoint held ``[K, N]``.
        tied: further parameters that share it.
        code_hash: SHA-256 of its codes.
        also: bits and group size of further precisions with fewer planes, ascending.
    """

    stored: str
    name: str
    kind: str
    rows: int
    inputs: int
    bits: int
    group_size: int
    offset: bool
    transposed: bool
    tied: tuple[str, ...]
    code_hash: str
    also: tuple[tuple[int, int], ...] = ()

    def specs(self) -> dict[str, TensorSpec]:
        """Type and shape of all its tensors by their full names."""
        tiles = ceil_div(self.rows, contract.TILE_ROWS)
        chunks = ceil_div(self.inputs, contract.WORD_BITS)
        codes = TensorSpec(_DTYPES["codes"], (tiles, chunks, self.bits, contract.TILE_ROWS))
        specs = {f"{self.stored}.codes": codes, **self._factors(self.stored, self.bits, self.group_size)}
        for bits, group_size in self.also:
            specs |= self._factors(self.prefix(bits), bits, group_size)
        return specs

    def prefix(self, bits: int) -> str:
        """What the names of the factors of a further precision begin with."""
        return f"{self.stored}.{bits}bit"

    def _factors(self, prefix: str, bits: int, group_size: int) -> dict[str, TensorSpec]:
        tile = contract.TILE_ROWS
        tiles, groups = ceil_div(self.rows, tile), ceil_div(self.inputs, group_size)
        shapes: dict[str, tuple[int, ...]] = {
            "alpha_1": (tiles, groups, tile),
            "alpha_rest": (tiles, groups, bits - 1, tile),
            "offset": (tiles, groups, tile) if self.offset else (0,),
        }
        return {f"{prefix}.{part}": TensorSpec(_DTYPES[part], shape) for part, shape in shapes.items()}

    @property
    def packed_bytes(self) -> int:
        """Bytes of its tensors at all precisions, padding included."""
        return sum(spec.nbytes for spec in self.specs().values())


@dataclass(frozen=True)
class QuantizedBase:
    """An opened base folder; tensors are read when asked for.

    Attributes:
        checkpoint: the folder as a checkpoint, for its dense tensors and configuration.
        matrices: every packed matrix by the name it has in the checkpoint.
    """

    checkpoint: Checkpoint
    matrices: dict[str, BaseMatrix]

    @classmethod
    def open(cls, folder: str | Path) -> QuantizedBase:
        """Opens a folder that ``bcq quantize`` wrote.

        Raises:
            InputError: as :meth:`Checkpoint.open`; E109 when the BCQ description is missing or does not fit.
        """
        checkpoint = Checkpoint.open(folder)
        if METADATA_KEY not in checkpoint.metadata:
            raise _malformed(checkpoint, "it has no BCQ matrices; make them with `bcq quantize`")
        try:
            described = json.loads(checkpoint.metadata[METADATA_KEY])
            version, layout = described["format_version"], described["layout"]
            matrices = [_matrix(entry) for entry in described["matrices"]]
        except (ValueError, TypeError, KeyError, RecursionError) as fault:
            raise _malformed(checkpoint, f"its description is not valid ({fault})") from fault
        expected = _version(matrices)
        if type(version) is not int or version != expected or layout != contract.LAYOUT:
            raise _malformed(
                checkpoint,
                f"its format is version {version!r}, layout {layout!r}, "
                f"expected {expected}, '{contract.LAYOUT}'",
            )
        if len({matrix.stored for matrix in matrices}) < len(matrices):
            raise _malformed(checkpoint, "it describes a matrix twice")
        for matrix in matrices:
            _check_stored(checkpoint, matrix)
        return cls(checkpoint, {matrix.stored: matrix for matrix in matrices})

    @property
    def folder(self) -> Path:
        """Where the base lies."""
        return self.checkpoint.folder

    @property
    def config(self) -> dict[str, Any]:
        """Content of ``config.json``."""
        return self.checkpoint.config

    @property
    def base_hash(self) -> str:
        """SHA-256 over all code hashes in the order of the names: it tells which base an adapter fits."""
        joined = "".join(self.matrices[stored].code_hash for stored in sorted(self.matrices))
        return hashlib.sha256(joined.encode("ascii")).hexdigest()

    def names(self) -> list[str]:
        """Checkpoint names of the packed matrices, sorted."""
        return sorted(self.matrices)

    def dense_names(self) -> list[str]:
        """Names of all tensors that are stored as they were, sorted."""
        parts = {part for matrix in self.matrices.values() for part in matrix.specs()}
        return [name for name in self.checkpoint.names() if name not in parts]

    def find(self, name: str) -> BaseMatrix | None:
        """The matrix with this checkpoint, parameter or tied parameter name; None when it is dense."""
        if name in self.matrices:
            return self.matrices[name]
        for matrix in self.matrices.values():
            if name == matrix.name or name in matrix.tied:
                return matrix
        return None

    def further_bits(self) -> list[int]:
        """Precisions that it serves besides those of its matrices, ascending."""
        return sorted({bits for matrix in self.matrices.values() for bits, _ in matrix.also})

    def packed(self, name: str, bits: int | None = None) -> PackedWeight:
        """One matrix in the layout of the operators.

        Args:
            name: as in :meth:`find`.
            bits: a further precision; a matrix that does not have it comes as it is.

        Raises:
            InputError: E107 when there is no such matrix, E109 when its codes do not have the recorded hash.
        """
        matrix = self.find(name)
        if matrix is None:
            raise InputError("E107", f"{self.folder} has no packed matrix {name!r}.")
        sizes = {matrix.bits: matrix.group_size, **dict(matrix.also)}
        prefix = matrix.prefix(bits) if bits in dict(matrix.also) else matrix.stored
        tensors = {part: self._read(f"{prefix}.{part}") for part in _FACTORS}
        packed = PackedWeight(
            codes=self._read(f"{matrix.stored}.codes"), **tensors, inputs=matrix.inputs, rows=matrix.rows,
            group_size=sizes.get(bits or 0, matrix.group_size),
        )  # fmt: skip
        if packed.code_hash() != matrix.code_hash:
            raise InputError(
                "E109",
                f"{matrix.stored}.codes does not have the recorded hash: it was changed.",
                "Quantize again.",
            )
        return packed

    def _read(self, name: str) -> NDArray[Any]:
        """A tensor mapped from the file: an export of any size holds none of it in memory."""
        entry = self.checkpoint.entry(name)
        if entry.nbytes == 0:
            return np.zeros(entry.shape, _NUMPY[entry.dtype])
        return np.memmap(entry.file, _NUMPY[entry.dtype], "r", entry.offset, entry.shape)


def metadata(matrices: list[BaseMatrix]) -> dict[str, str]:
    """The metadata of ``model.safetensors``; its length depends on no hash."""
    entries = [_without_nothing(asdict(matrix)) for matrix in matrices]
    described = {"format_version": _version(matrices), "layout": contract.LAYOUT, "matrices": entries}
    return {"format": "pt", METADATA_KEY: json.dumps(described, separators=(",", ":"))}


def _version(matrices: list[BaseMatrix]) -> int:
    """Bases of one precision have the format that they always had."""
    nested = any(matrix.also for matrix in matrices)
    return contract.NESTED_FORMAT_VERSION if nested else contract.FORMAT_VERSION


def _without_nothing(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "also" or value}


def is_base(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a quantized base."""
    section = config.get("quantization_config")
    return isinstance(section, dict) and section.get("quant_method") == "bcq"


def _matrix(entry: dict[str, Any]) -> BaseMatrix:
    expected = {field.name: field.type for field in fields(BaseMatrix)}
    if {*entry, "also"} != set(expected):
        raise ValueError(f"a matrix has the fields {sorted(entry)}")
    kinds = {"int": int, "bool": bool, "str": str}
    for field, kind in expected.items():
        if str(kind) in kinds and type(entry[field]) is not kinds[str(kind)]:
            raise ValueError(f"{entry['stored']}: {field} is {entry[field]!r}")
    if not isinstance(entry["tied"], list):
        raise ValueError(f"{entry['stored']}: tied is {entry['tied']!r}")
    lists = {"tied": tuple(map(str, entry["tied"])), "also": _also(entry)}
    matrix = BaseMatrix(**{**entry, **lists})
    if matrix.rows < 1 or not contract.MIN_BITS <= matrix.bits <= contract.MAX_BITS:
        raise ValueError(f"{matrix.stored}: {matrix.rows} rows, {matrix.bits} bits")
    check_group_size(matrix.group_size, matrix.inputs)
    for _, group_size in matrix.also:
        check_group_size(group_size, matrix.inputs)
    return matrix


def _also(entry: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """Further precisions: pairs of integers, their bits ascending from 1 to below the matrix's own."""
    pairs = entry.get("also", [])
    well = isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs)
    if not well or not all(type(number) is int for pair in pairs for number in pair):
        raise ValueError(f"{entry['stored']}: also is {pairs!r}")
    planes = [contract.MIN_BITS - 1, *(bits for bits, _ in pairs), entry["bits"]]
    if pairs and planes != sorted(set(planes)):
        raise ValueError(f"{entry['stored']}: further precisions of {planes[1:-1]} bits")
    return tuple((bits, group_size) for bits, group_size in pairs)


def _check_stored(checkpoint: Checkpoint, matrix: BaseMatrix) -> None:
    for name, spec in matrix.specs().items():
        entry = checkpoint.entry(name)
        if (entry.dtype, entry.shape) != (spec.dtype, spec.shape):
            got, expected = f"{entry.dtype}{list(entry.shape)}", f"{spec.dtype}{list(spec.shape)}"
            raise InputError("E109", f"{SINGLE}: {name} is {got}, expected {expected} from its description.")


def _malformed(checkpoint: Checkpoint, detail: str) -> InputError:
    return InputError("E109", f"{checkpoint.folder} is not a usable quantized base: {detail}.")
