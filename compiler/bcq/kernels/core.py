# SPDX-License-Identifier: Apache-2.0
"""The kernels' plain C ABI (``runtime/core/bcq_core.h``) in Python: for ``bcq doctor``, tests and benches."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import Float32
from bcq.errors import ResourceError
from bcq.packing import PackedWeight
from bcq.runtime import library_path, one_line

_RESULTS = {
    **dict.fromkeys(("contract", "isa_name", "isa_error", "kernel_name", "kernel_source"), ctypes.c_char_p),
    **dict.fromkeys(("select_matmul", "select_gather", "matmul", "gather"), ctypes.c_char_p),
    "matmul_make_resident": ctypes.c_char_p,
    "matmul_has_own_order": ctypes.c_int32,
    "matmul_scratch_bytes": ctypes.c_size_t,
    "memory_for_copies": ctypes.c_uint64,
    **dict.fromkeys(("cpu_flags", "detected_cpu_flags", "kernel_flags"), ctypes.c_uint32),
}


class MatMulProblem(ctypes.Structure):
    """``BcqMatMulProblem``, field for field."""

    _fields_ = (
        ("M", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("N", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("a_is_half", ctypes.c_int32),
        ("accuracy_level", ctypes.c_int32),
        ("resident", ctypes.c_int32),
        ("a", ctypes.c_void_p),
        ("a_stride", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("alpha_1", ctypes.c_void_p),
        ("alpha_rest", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("planes", ctypes.c_int64),
        ("a_is_brain", ctypes.c_int64),
    )


class GatherProblem(ctypes.Structure):
    """``BcqGatherProblem``, field for field."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("N", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("index_is_int32", ctypes.c_int32),
        ("indices", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("alpha_1", ctypes.c_void_p),
        ("alpha_rest", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("planes", ctypes.c_int64),
    )


@dataclass(frozen=True)
class KernelRow:
    """One row of ``kernels.inc``: its name, the stem of its source file, the CPU flags that it needs."""

    name: str
    source: str
    flags: int


@dataclass(frozen=True)
class Core:
    """The loaded library. Problems are trusted: shapes must be right, as after the operators' validator."""

    path: Path
    library: ctypes.CDLL

    @staticmethod
    def load() -> Core:
        """The installed library, loaded once.

        Raises:
            ResourceError: E603 when it is missing or cannot be loaded.
        """
        return _load(library_path())

    def contract(self) -> str:
        """The contract that the library was built with, one line per operator."""
        return self._text(self.library.bcq_contract())

    def flags(self) -> int:
        """CPU flags after ``BCQ_ISA``."""
        return int(self.library.bcq_cpu_flags())

    def detected_flags(self) -> int:
        """CPU flags of this machine."""
        return int(self.library.bcq_detected_cpu_flags())

    def isa_name(self, flags: int) -> str:
        """The highest instruction-set name that the flags cover."""
        return self._text(self.library.bcq_isa_name(ctypes.c_uint32(flags)))

    def isa_error(self) -> str | None:
        """Why ``BCQ_ISA`` is refused, or None."""
        error = self.library.bcq_isa_error()
        return None if error is None else self._text(error)

    def kernels(self, op: str) -> list[KernelRow]:
        """All built kernels of an operator, the preferred first."""
        key = op.encode()
        return [
            KernelRow(
                name=self._text(self.library.bcq_kernel_name(key, i)),
                source=self._text(self.library.bcq_kernel_source(key, i)),
                flags=int(self.library.bcq_kernel_flags(key, i)),
            )
            for i in range(self.library.bcq_kernel_count(key))
        ]

    def select_matmul(
        self,
        *,
        bits: int,
        flags: int,
        M: int = 1,
        K: int = 4096,
        N: int = 4096,
        group_size: int = 128,
        accuracy_level: int = 0,
    ) -> str:
        """Name of the kernel that a CPU with ``flags`` runs for a problem of these sizes."""
        problem = MatMulProblem(
            M=M,
            K=K,
            N=N,
            group_size=group_size,
            bits=bits,
            accuracy_level=accuracy_level,
            a_stride=K,
            y_stride=N,
        )
        return self._text(self.library.bcq_select_matmul(ctypes.byref(problem), ctypes.c_uint32(flags)))

    def select_gather(self, *, flags: int) -> str:
        """Name of the gather kernel that a CPU with ``flags`` runs."""
        problem = GatherProblem(count=1, K=32, N=16, group_size=32, bits=1)
        return self._text(self.library.bcq_select_gather(ctypes.byref(problem), ctypes.c_uint32(flags)))

    def matmul(
        self,
        a: NDArray[Any],
        weight: PackedWeight,
        *,
        kernel: str | None = None,
        parts: int = 0,
        accuracy_level: int = 0,
        resident: NDArray[np.uint32] | None = None,
    ) -> NDArray[Any]:
        """Y = A W^T.

        Args:
            a: float32, float16 or ml_dtypes' bfloat16 ``[M, K]``, contiguous rows.
            weight: the packed matrix ``[N, K]``.
            kernel: a name from `kernels`, or None for the one that is selected here.
            parts: pieces that the work is cut into, one after the other; 0 chooses.
            accuracy_level: see ``ops/README.md``.
            resident: codes from `make_resident` for the same kernel, used instead of the weight's own.

        Returns:
            ``[M, N]`` of the type of ``a``.

        Raises:
            ValueError: when the kernel is unknown, does not fit the problem or needs another CPU.
        """
        y = np.empty((a.shape[0], weight.rows), a.dtype)
        problem = MatMulProblem(
            M=a.shape[0],
            K=weight.inputs,
            N=weight.rows,
            group_size=weight.group_size,
            bits=weight.bits,
            planes=weight.planes,
            a_is_half=int(a.dtype == np.float16),
            a_is_brain=int(a.dtype.name == "bfloat16"),
            accuracy_level=accuracy_level,
            a=a.ctypes.data,
            a_stride=a.strides[0] // a.itemsize,
            y=y.ctypes.data,
            y_stride=weight.rows,
            **_weight_pointers(weight),
        )
        if resident is not None:
            problem.codes, problem.resident, problem.planes = resident.ctypes.data, 1, weight.bits
        name = None if kernel is None else kernel.encode()
        scratch = _aligned(self.library.bcq_matmul_scratch_bytes(ctypes.byref(problem), name))
        error = self.library.bcq_matmul(ctypes.byref(problem), name, scratch.ctypes.data, parts, None, None)
        if error is not None:
            raise ValueError(f"kernel {kernel}: {self._text(error)}")
        return y

    def make_resident(
        self, weight: PackedWeight, *, kernel: str | None = None, accuracy_level: int = 0
    ) -> NDArray[np.uint32]:
        """A copy of a weight's codes in the order that a kernel reads, for `matmul`.

        Args:
            weight: the packed matrix ``[N, K]``.
            kernel: a name from `kernels`, or None for the one that is selected here.
            accuracy_level: see ``ops/README.md``.

        Returns:
            uint32 ``[T, C, q, 16]`` that starts at a multiple of 64 bytes: the first q planes of the weight's
            codes; the order inside each line of 16 words may differ.

        Raises:
            ValueError: when the kernel is unknown or needs another CPU.
        """
        shape = (*weight.codes.shape[:2], weight.bits, weight.codes.shape[3])
        copy = _aligned(4 * math.prod(shape)).view(np.uint32).reshape(shape)
        problem = MatMulProblem(
            M=1,
            K=weight.inputs,
            N=weight.rows,
            group_size=weight.group_size,
            bits=weight.bits,
            planes=weight.planes,
            accuracy_level=accuracy_level,
            **_weight_pointers(weight),
        )
        name = None if kernel is None else kernel.encode()
        error = self.library.bcq_matmul_make_resident(ctypes.byref(problem), name, copy.ctypes.data)
        if error is not None:
            raise ValueError(f"kernel {kernel}: {self._text(error)}")
        return copy

    def has_own_order(self, kernel: str) -> bool:
        """Whether `make_resident` changes the order of codes for a kernel, which makes it faster."""
        return bool(self.library.bcq_matmul_has_own_order(kernel.encode()))

    def memory_for_copies(self) -> int:
        """Bytes that resident copies may take before the library leaves codes mapped on its own account."""
        return int(self.library.bcq_memory_for_copies())

    def gather(
        self, indices: NDArray[Any], weight: PackedWeight, *, kernel: str | None = None, parts: int = 0
    ) -> Float32:
        """Rows of W, float32 ``[count, K]``, for int32 or int64 ``indices`` ``[count]`` in [-N, N-1]."""
        y = np.empty((indices.shape[0], weight.inputs), np.float32)
        problem = GatherProblem(
            count=indices.shape[0],
            K=weight.inputs,
            N=weight.rows,
            group_size=weight.group_size,
            bits=weight.bits,
            planes=weight.planes,
            index_is_int32=int(indices.dtype == np.int32),
            indices=indices.ctypes.data,
            y=y.ctypes.data,
            **_weight_pointers(weight),
        )
        name = None if kernel is None else kernel.encode()
        error = self.library.bcq_gather(ctypes.byref(problem), name, parts, None, None)
        if error is not None:
            raise ValueError(f"kernel {kernel}: {self._text(error)}")
        return y

    @staticmethod
    def _text(text: bytes | None) -> str:
        return (text or b"").decode()


@cache
def _load(path: Path) -> Core:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ResourceError(
            "E603", f"{path}: this library cannot be loaded: {one_line(error)}", "Reinstall the package."
        ) from error
    try:
        _declare(library)
    except AttributeError as error:
        raise ResourceError(
            "E603",
            f"{path}: this library is not of this version of the package: {one_line(error)}",
            "Run 'make build' in the checkout, reinstall the package, or unset BCQ_LIBRARY.",
        ) from error
    return Core(path, library)


def _declare(library: ctypes.CDLL) -> None:
    """Types of what the functions take and give; AttributeError names a function that is not there."""
    for name, result in _RESULTS.items():
        getattr(library, f"bcq_{name}").restype = result
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.bcq_matmul.argtypes = [pointer, ctypes.c_char_p, pointer, size, pointer, pointer]
    library.bcq_matmul_make_resident.argtypes = [pointer, ctypes.c_char_p, pointer]
    library.bcq_gather.argtypes = [pointer, ctypes.c_char_p, size, pointer, pointer]


def _weight_pointers(weight: PackedWeight) -> dict[str, int | None]:
    """Addresses of the four tensors; empty ones are null."""
    return {name: tensor.ctypes.data if tensor.size else None for name, tensor in weight.tensors().items()}


def _aligned(size: int) -> NDArray[np.uint8]:
    """Bytes that start at a multiple of 64, as kernels expect of scratch."""
    block = np.empty(size + 64, np.uint8)
    start = -block.ctypes.data % 64
    return block[start : start + size]
