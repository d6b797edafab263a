# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels in other ways than the installed library: emulated, or to look at the machine code."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[1] / "runtime"
NATIVE = Path(__file__).parent / "native"
KERNELS = RUNTIME / "kernels" / "bcq_matmul"
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni")
COMMON = ("-std=c++17", "-O3", "-DNDEBUG", "-DBCQ_ARCH_X86=1", "-fPIC", f"-I{RUNTIME}")


def compiler(name: str = "g++") -> str:
    """Path of a compiler; skips the test where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def compile_object(source: Path, target: Path, flags: tuple[str, ...], with_compiler: str = "g++") -> Path:
    """Compiles one file and returns ``target``."""
    command = [compiler(with_compiler), *COMMON, *flags, "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


def emulated_library(folder: Path) -> Path:
    """A library whose AVX-512 kernel runs on any CPU with AVX2, by SIMDe; skips where SIMDe is missing."""
    if not Path("/usr/include/simde/x86/avx512.h").is_file():
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    header = ("-include", str(NATIVE / "avx512_emulated.h"))
    parts = [
        compile_object(KERNELS / "avx512.cc", folder / "avx512.o", (*AVX2, *header)),
        compile_object(KERNELS / "avx2.cc", folder / "avx2.o", AVX2),
        compile_object(KERNELS / "scalar.cc", folder / "scalar.o", ()),
        compile_object(RUNTIME / "kernels" / "bcq_gather" / "scalar.cc", folder / "gather.o", ()),
        compile_object(RUNTIME / "core" / "dispatch.cc", folder / "dispatch.o", ()),
        compile_object(RUNTIME / "core" / "run.cc", folder / "run.o", ()),
        compile_object(NATIVE / "every_cpu.cc", folder / "every_cpu.o", ()),
    ]
    library = folder / "libbcq_emulated.so"
    subprocess.run([compiler(), "-shared", *map(str, parts), "-o", str(library)], check=True)
    return library
