# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' plain C ABI (``runtime/cuda/bcq_cuda.h``) in Python: for PyTorch modules and benches.

Nothing here imports PyTorch: problems are made of device addresses, as ``tensor.data_ptr()`` gives them.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bcq.errors import BcqError, ResourceError

LIBRARY_NAME = "libbcq_ops_cuda.so"
ABI = 2  # BCQ_CUDA_ABI of the header
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}


class MatMulProblem(ctypes.Structure):
    """``BcqCudaMatMul``, field for field."""

    _fields_ = (
        ("M", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("N", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("planes", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("accuracy_level", ctypes.c_int32),
        ("a", ctypes.c_void_p),
        ("a_stride", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("alpha_1", ctypes.c_void_p),
        ("alpha_rest", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
    )


class GatherProblem(ctypes.Structure):
    """``BcqCudaGather``, field for field."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("N", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("planes", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("index_is_int32", ctypes.c_int32),
        ("indices", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("alpha_1", ctypes.c_void_p),
        ("alpha_rest", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class CudaWeight:
    """One packed matrix ``[N, K]`` in device memory, see ``ops/README.md``.

    Attributes:
        codes: address of uint32 ``[T, C, planes, 16]``, a multiple of 16.
        alpha_1: address of float16 ``[T, G, 16]``, a multiple of 8, as the next two.
        alpha_rest: address of float16 ``[T, G, q-1, 16]``, or None when q = 1.
        offset: address of float16 ``[T, G, 16]``, or None.
        rows: N.
        inputs: K.
        group_size: g.
        bits: q, the planes that are read, the first ones.
        planes: the planes that codes hold; 0 means q.
    """

    codes: int
    alpha_1: int
    alpha_rest: int | None
    offset: int | None
    rows: int
    inputs: int
    group_size: int
    bits: int
    planes: int = 0

    def fields(self) -> dict[str, Any]:
        """What both problems have in common."""
        return {
            "K": self.inputs,
            "N": self.rows,
            "group_size": self.group_size,
            "bits": self.bits,
            "planes": self.planes or self.bits,
            "codes": self.codes,
            "alpha_1": self.alpha_1,
            "alpha_rest": self.alpha_rest,
            "offset": self.offset,
        }


@dataclass(frozen=True)
class Cuda:
    """The loaded library. Problems are trusted: shapes must be right, and addresses on the current device."""

    path: Path
    library: ctypes.CDLL

    @staticmethod
    def load(path: Path | None = None) -> Cuda:
        """The library, loaded once.

        Args:
            path: another build of it; None means `library_path`.

        Raises:
            ResourceError: E603 when it is not there, cannot be loaded or is of another version.
        """
        return _load(path or library_path())

    def unavailable(self) -> str | None:
        """Why nothing can run on the current device, or None."""
        return _text(self.library.bcq_cuda_unavailable())

    def device(self) -> str | None:
        """The current device in words, or None."""
        return _text(self.library.bcq_cuda_device())

    def kernels(self) -> list[str]:
        """Names of the matmul kernels."""
        names: list[str] = []
        while (name := _text(self.library.bcq_cuda_kernel_name(len(names)))) is not None:
            names.append(name)
        return names

    def select(
        self, weight: CudaWeight, *, M: int, dtype: str, sm: int, processors: int, accuracy_level: int = 0
    ) -> str | None:
        """Name of the kernel that a device of capability ``sm`` (90 for 9.0) runs for ``M`` rows."""
        problem = _matmul_problem(weight, M=M, dtype=dtype, accuracy_level=accuracy_level)
        return _text(self.library.bcq_cuda_select(ctypes.byref(problem), sm, processors))

    def matmul(
        self,
        weight: CudaWeight,
        *,
        M: int,
        dtype: str,
        a: int,
        y: int,
        a_stride: int = 0,
        y_stride: int = 0,
        stream: int = 0,
        kernel: str | None = None,
        accuracy_level: int = 0,
    ) -> None:
        """Puts Y = A W^T on a stream.

        Args:
            weight: the packed matrix ``[N, K]``.
            M: rows of A.
            dtype: of A and Y: ``float32``, ``float16`` or ``bfloat16``.
            a: address of ``[M, K]``.
            y: address of ``[M, N]``.
            a_stride: elements from row to row; 0 means K.
            y_stride: elements from row to row; 0 means N.
            stream: a ``cudaStream_t``, as ``torch.cuda.current_stream().cuda_stream``; 0 is the default.
            kernel: a name from `kernels`, or None for the one that is selected.
            accuracy_level: see ``ops/README.md``.

        Raises:
            ValueError: when the kernel is unknown or does not take the problem, or the launch fails.
        """
        problem = _matmul_problem(weight, M=M, dtype=dtype, accuracy_level=accuracy_level)
        problem.a, problem.a_stride = a, a_stride or weight.inputs
        problem.y, problem.y_stride = y, y_stride or weight.rows
        name = None if kernel is None else kernel.encode()
        _refuse(self.library.bcq_cuda_matmul(ctypes.byref(problem), name, stream))

    def gather(
        self,
        weight: CudaWeight,
        *,
        count: int,
        indices: int,
        y: int,
        index_is_int32: bool = False,
        dtype: str = "float32",
        stream: int = 0,
    ) -> None:
        """Puts Y[i, :] = W[indices[i], :] on a stream; an index outside [-N, N-1] gives a row of NaN.

        Raises:
            ValueError: when the launch fails.
        """
        problem = GatherProblem(
            **weight.fields(),
            count=count,
            type=TYPES[dtype],
            index_is_int32=int(index_is_int32),
            indices=indices,
            y=y,
        )
        _refuse(self.library.bcq_cuda_gather(ctypes.byref(problem), stream))


def library_path() -> Path:
    """Where the CUDA part lies: beside the operator library, or where ``BCQ_CUDA_LIBRARY`` says."""
    return Path(os.environ.get("BCQ_CUDA_LIBRARY") or str(files("bcq") / LIBRARY_NAME))


def facts() -> dict[str, str | None]:
    """For ``bcq doctor``: the CUDA library, the device that it would use, and what is missing otherwise."""
    path = library_path()
    if not path.is_file():
        missing = f"{path} is not there: `pip install ./runtime/cuda` in a checkout builds it where nvcc is"
        return {"library": None, "device": None, "missing": missing}
    try:
        cuda = Cuda.load()
    except BcqError as error:
        return {"library": str(path), "device": None, "missing": error.message}
    return {"library": str(path), "device": cuda.device(), "missing": cuda.unavailable()}


def _matmul_problem(weight: CudaWeight, *, M: int, dtype: str, accuracy_level: int) -> MatMulProblem:
    return MatMulProblem(**weight.fields(), M=M, type=TYPES[dtype], accuracy_level=accuracy_level)


def _refuse(error: bytes | None) -> None:
    if error is not None:
        raise ValueError(_text(error))


def _text(text: bytes | None) -> str | None:
    return None if text is None else text.decode()


@cache
def _load(path: Path) -> Cuda:
    if not path.is_file():
        raise ResourceError(
            "E603",
            f"{path}: the CUDA part of the operator library is not there.",
            "Build it with `pip install ./runtime/cuda` in a checkout, or unset BCQ_CUDA_LIBRARY.",
        )
    try:
        library = ctypes.CDLL(str(path))
        found = int(library.bcq_cuda_abi())
        if found != ABI:
            raise AttributeError(f"got interface {found}, expected {ABI}")
        _declare(library)
    except (OSError, AttributeError) as error:
        raise ResourceError(
            "E603",
            f"{path}: this library cannot be used: {' '.join(str(error).split())}",
            "Build it again with this version of the package, or unset BCQ_CUDA_LIBRARY.",
        ) from error
    return Cuda(path, library)


def _declare(library: ctypes.CDLL) -> None:
    """Types of what the functions take and give; AttributeError names a function that is not there."""
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    for name in ("unavailable", "device", "kernel_name", "select", "matmul", "gather"):
        getattr(library, f"bcq_cuda_{name}").restype = text
    library.bcq_cuda_kernel_name.argtypes = [number]
    library.bcq_cuda_select.argtypes = [pointer, number, number]
    library.bcq_cuda_matmul.argtypes = [pointer, text, pointer]
    library.bcq_cuda_gather.argtypes = [pointer, pointer]
