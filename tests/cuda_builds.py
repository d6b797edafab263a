# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels built by a host compiler: the same sources, with a coroutine for each thread."""

from __future__ import annotations

import fcntl
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bcq.kernels.cuda import Cuda, CudaWeight
from bcq.packing import PackedWeight
from guarded import guarded
from native_builds import NATIVE, RUNTIME, compiler
from nodes import Array

CUDA = RUNTIME / "cuda"
COLUMNS = (1, 2, 4, 8)  # BCQ_CUDA_COLUMNS of tiles.cu, as in cuda/CMakeLists.txt
PLANES = (1, 2, 3, 4)  # BCQ_CUDA_PLANES of wide.cu
FLAGS = ("-std=c++17", "-O0", "-fPIC", "-ffp-contract=off", f"-I{RUNTIME}", f"-I{NATIVE}")
QUANTUM = 16  # addresses of weights are multiples of this


def emulated(folder: Path) -> Cuda:
    """The emulated library; built once, beside the folders of all workers of the run."""
    shared = folder.parents["PYTEST_XDIST_WORKER" in os.environ] / "emulated_cuda"
    shared.mkdir(exist_ok=True)
    library = shared / "libbcq_ops_cuda_emulated.so"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            link_emulated(library, shared)
    return Cuda.load(library)


def link_emulated(library: Path, folder: Path) -> None:
    """Compiles all kernels as C++ and links them with the emulated device."""
    units = [("tiles.cu", f"-DBCQ_CUDA_COLUMNS={columns}") for columns in COLUMNS]
    units += [("wide.cu", f"-DBCQ_CUDA_PLANES={planes}") for planes in PLANES]
    units += [(name, "-DBCQ_EMULATED") for name in ("digits.cu", "rest.cu", "api.cc", "select.cc")]
    sources = [(CUDA / name, flag) for name, flag in units]
    sources.append((NATIVE / "cuda_device_emulated.cc", "-DBCQ_EMULATED"))
    parts = []
    for number, (source, flag) in enumerate(sources):
        part = folder / f"{number}.o"
        command = [compiler(), *FLAGS, flag, "-x", "c++", "-c", str(source), "-o", str(part)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        parts.append(str(part))
    whole = library.with_suffix(".part")
    subprocess.run([compiler(), "-shared", *parts, "-o", str(whole)], check=True)
    whole.rename(library)


def on_guarded_pages(weight: PackedWeight, *, before: bool = False) -> PackedWeight:
    """The weight with each tensor beside a page that nobody may touch, at addresses that kernels ask for."""

    def held(tensor: Array) -> Array:
        return guarded(tensor, before=before, aligned=QUANTUM) if tensor.size else tensor

    return replace(
        weight,
        codes=held(weight.codes),
        alpha_1=held(weight.alpha_1),
        alpha_rest=held(weight.alpha_rest),
        offset=held(weight.offset),
    )


def cuda_weight(weight: PackedWeight) -> CudaWeight:
    """Addresses of a packed weight, which must outlive them."""
    address = {name: tensor.ctypes.data if tensor.size else None for name, tensor in weight.tensors().items()}
    return CudaWeight(
        codes=address["codes"] or 0,
        alpha_1=address["alpha_1"] or 0,
        alpha_rest=address["alpha_rest"],
        offset=address["offset"],
        rows=weight.rows,
        inputs=weight.inputs,
        group_size=weight.group_size,
        bits=weight.bits,
        planes=weight.planes,
    )


def to_brain(array: Array) -> Array:
    """Bits of the nearest bfloat16 values, uint16."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_brain(bits: Array) -> Array:
    """Float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def multiply(cuda: Cuda, a: Array, packed: PackedWeight, **options: Any) -> Array:
    """Y = A W^T in memory of its own; uint16 arrays are bfloat16. Outputs that nobody writes are NaN."""
    y = np.full((a.shape[0], packed.rows), 0x7FFF, np.uint16) if a.dtype == np.uint16 else None
    y = np.full((a.shape[0], packed.rows), np.nan, a.dtype) if y is None else y
    cuda.matmul(
        cuda_weight(packed),
        M=a.shape[0],
        dtype="bfloat16" if a.dtype == np.uint16 else a.dtype.name,
        a=a.ctypes.data,
        y=y.ctypes.data,
        **options,
    )
    return y
