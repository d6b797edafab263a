# SPDX-License-Identifier: Apache-2.0
"""Packed matrices of a run, kept beside its output until that is whole, so that a stopped run can go on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import __version__, contract
from bcq.bcq import Float32
from bcq.errors import BcqError, ResourceError, UsageError
from bcq.files.safetensors_read import Header, read_header
from bcq.files.safetensors_write import SafetensorsWriter, TensorSpec
from bcq.packing import PackedWeight

_DTYPES = {"codes": ("U32", "<u4"), "alpha_1": ("F16", "<f2"), "alpha_rest": ("F16", "<f2"),
           "offset": ("F16", "<f2")}  # fmt: skip
_LOCK = "lock"
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class _Kept:
    """A matrix of the store, mapped, and its errors."""

    weight: PackedWeight
    relative_error: float
    calibrated_error: float | None


class Finished:
    """The store of one output folder: ``.<name>.resume`` beside it, one file a matrix.

    A matrix is found again by the hash of its values and of everything that decides how it is packed, and is
    used only if its own bytes have the hash recorded with them. So a run that goes on makes the same bytes
    as one that was never stopped, whatever was left behind.

    Args:
        output: the output folder.
        resume: use what a stopped run left; else that is removed.
    """

    def __init__(self, output: str | Path, resume: bool = False) -> None:
        output = Path(output).absolute()
        self._output = output
        self._folder = output.with_name(f".{output.name}.resume")
        self._resume = resume
        self._lock: int | None = None

    def open(self) -> None:
        """Makes the store, for this process alone; the parent of the output exists.

        Raises:
            UsageError: E203 when another run writes the same output, or the store is not this user's.
        """
        while self._lock is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._check_own()
            self._lock = _locked(self._folder / _LOCK)
            if self._lock == -1:
                self._lock = None
                raise UsageError(
                    "E203",
                    f"another run is writing {self._output}.",
                    "Wait for it, or choose another output.",
                )
        if not self._resume:
            for file in self._folder.iterdir():
                if file.name != _LOCK:
                    file.unlink()

    def close(self, fault: BaseException | None) -> BaseException | None:
        """Removes the store, unless a run can go on with it; then the fault with that hint.

        A run that fails for good leaves nothing of its own; one that was to go on, and perhaps had an option
        spelt wrongly, leaves what it found.
        """
        if self._lock is None:
            return None
        kept = sum(1 for _ in self._folder.glob("*" + _SUFFIX))
        stopped = isinstance(fault, KeyboardInterrupt | ResourceError)
        if not (kept and (stopped or (fault is not None and self._resume))):
            shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None
        if isinstance(fault, ResourceError) and kept:
            hint = f"{fault.hint} --resume goes on with the {kept} matrices that are done.".strip()
            return ResourceError(fault.code, fault.message, hint)
        return None

    def find(self, key: str) -> tuple[PackedWeight, float] | None:
        """A matrix by its `key`, mapped from the store, and its relative error; None when it is not there."""
        found = self._read(key)
        return None if found is None else (found.weight, found.relative_error)

    def errors(self, key: str) -> tuple[float, float | None] | None:
        """Relative and calibrated error of a matrix; None when it is not there."""
        found = self._read(key)
        return None if found is None else (found.relative_error, found.calibrated_error)

    def keep(
        self, key: str, weight: PackedWeight, relative_error: float, calibrated_error: float | None = None
    ) -> PackedWeight:
        """Stores a matrix, which has its name once it is whole; the same matrix, mapped from the store."""
        temporary, specs = self._folder / "part", _specs(weight)
        described = {
            "sha256": _hash(weight, key, relative_error, calibrated_error), "relative_error": relative_error,
            "calibrated_error": calibrated_error,
            "rows": weight.rows, "inputs": weight.inputs, "group_size": weight.group_size,
        }  # fmt: skip
        with SafetensorsWriter(temporary, specs, {"bcq": json.dumps(described)}) as writer:
            for name, array in weight.tensors().items():
                writer.write(name, _bytes(array, name))
        file = temporary.replace(self._folder / (key + _SUFFIX))
        return _mapped(read_header(file), weight.rows, weight.inputs, weight.group_size)

    def _read(self, key: str) -> _Kept | None:
        """What is there under a key; something damaged is removed."""
        file = self._folder / (key + _SUFFIX)
        try:
            found = _kept(read_header(file), key)
        except (BcqError, ValueError, KeyError, TypeError, OSError):
            file.unlink(missing_ok=True)
            return None
        return found

    def _check_own(self) -> None:
        status = self._folder.lstat()
        foreign = status.st_uid != os.geteuid() or bool(status.st_mode & 0o022)
        if not stat.S_ISDIR(status.st_mode) or foreign:
            raise UsageError(
                "E203",
                f"{self._folder} is a link or not only yours; finished matrices would be kept there.",
                "Remove it, or choose another output.",
            )


def key_of(
    dense: Float32, bits: int, group_size: int, method: str, offset: bool, seed: int, inputs: str = ""
) -> str:
    """The name of a matrix in the store: its values, and all that decides how they are packed.

    ``inputs`` names all that the inputs of a calibrated matrix depend on.
    """
    how = {
        "bcq": __version__, "numpy": np.__version__, "format": contract.FORMAT_VERSION,
        "layout": contract.LAYOUT, "shape": dense.shape, "bits": bits, "group_size": group_size,
        "method": method, "offset": offset, "seed": seed, "inputs": inputs,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(how).encode())
    for start in range(0, len(dense), step := max(1, (1 << 20) // max(1, dense.shape[1]))):
        digest.update(np.ascontiguousarray(dense[start : start + step], "<f4").data)
    return digest.hexdigest()


def _locked(file: Path) -> int | None:
    """A handle that holds the lock; -1 when another process has it, None when the file was just removed."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file.exists() and os.path.samestat(os.fstat(handle), file.stat()):
            return handle
    except BlockingIOError:
        os.close(handle)
        return -1
    os.close(handle)
    return None


def _kept(header: Header, key: str) -> _Kept:
    described: dict[str, Any] = json.loads(header.metadata["bcq"])
    weight = _mapped(header, described["rows"], described["inputs"], described["group_size"])
    error, calibrated = float(described["relative_error"]), described["calibrated_error"]
    if described["sha256"] != _hash(weight, key, error, calibrated):
        raise ValueError("other bytes than were written")
    return _Kept(weight, error, calibrated)


def _mapped(header: Header, rows: int, inputs: int, group_size: int) -> PackedWeight:
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, numpy_type) in _DTYPES.items():
        stored = header.tensors[name]
        if stored.dtype != dtype:
            raise ValueError(name)
        arrays[name] = (
            np.memmap(stored.file, numpy_type, "r", stored.offset, stored.shape)
            if stored.nbytes
            else np.zeros(stored.shape, numpy_type)
        )
    return PackedWeight(**arrays, rows=rows, inputs=inputs, group_size=group_size)


def _specs(weight: PackedWeight) -> dict[str, TensorSpec]:
    return {name: TensorSpec(_DTYPES[name][0], array.shape) for name, array in weight.tensors().items()}


def _hash(weight: PackedWeight, key: str, relative_error: float, calibrated_error: float | None) -> str:
    sizes = (weight.rows, weight.inputs, weight.group_size)
    digest = hashlib.sha256(f"{key} {relative_error!r} {calibrated_error!r} {sizes}".encode())
    for name, array in weight.tensors().items():
        digest.update(_bytes(array, name))
    return digest.hexdigest()


def _bytes(array: NDArray[Any], name: str) -> memoryview:
    return np.ascontiguousarray(array, _DTYPES[name][1]).reshape(-1).view(np.uint8).data
