# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels in other ways than the installed library: emulated, or to look at the machine code."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[1] / "runtime"
NATIVE = Path(__file__).parent / "native"
KERNELS = RUNTIME / "kernels" / "bcq_matmul"
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni")
BUILD_SECONDS = 300
COMMON = ("-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", "-DBCQ_ARCH_X86=1", "-fPIC", f"-I{RUNTIME}")


def isa_flags(source: Path) -> tuple[str, ...]:
    """The flags that a file of kernels is compiled with, by its name, as in ``CMakeLists.txt``."""
    if source.stem.startswith("avx512"):
        return AVX512
    return AVX2 if source.stem.startswith("avx2") else ()


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


def run_program(
    folder: Path, *sources: Path, arguments: Sequence[str | Path] = (), library: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Compiles a program in ``folder``, linked with ``library`` if there is one, and runs it."""
    program = folder / sources[0].stem
    linked = [] if library is None else [str(library), f"-Wl,-rpath,{library.parent}"]
    flags = ["-std=c++17", "-O1", f"-I{RUNTIME}", f"-I{NATIVE}", "-pthread", "-o", str(program)]
    subprocess.run([compiler(), *map(str, sources), *linked, *flags], check=True)
    return subprocess.run([program, *arguments], capture_output=True, text=True)


def emulated_library(folder: Path) -> Path:
    """A library whose AVX-512 kernels run on any CPU with AVX2, by SIMDe; skips where SIMDe is missing.

    Args:
        folder: a test's own folder. The library is built once, beside the folders of all workers of the run.
    """
    if not Path("/usr/include/simde/x86/avx512.h").is_file():
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    compiler()
    shared = folder.parents["PYTEST_XDIST_WORKER" in os.environ] / "emulated_library"
    library = shared / "libbcq_emulated.so"
    try:
        shared.mkdir()
    except FileExistsError:  # another module or worker builds it, or has done so
        for _ in range(BUILD_SECONDS):
            if library.exists():
                return library
            if (shared / "failed").exists():
                break
            time.sleep(1)
        pytest.fail("the emulated library was not built, see the test that tried")
    try:
        link_emulated(shared / "whole.so", shared)
    except subprocess.CalledProcessError:
        (shared / "failed").touch()
        raise
    (shared / "whole.so").rename(library)
    return library


def link_emulated(library: Path, folder: Path) -> None:
    """Compiles every kernel and what calls them into one library."""
    replaced = {"cpu.cc", "contract_text.cc", "validate.cc"}  # by every_cpu.cc, or not needed
    core = [source for source in (RUNTIME / "core").glob("*.cc") if source.name not in replaced]
    sources = [*(RUNTIME / "kernels").glob("*/*.cc"), *core, NATIVE / "every_cpu.cc"]
    parts = []
    for number, source in enumerate(sources):
        flags = isa_flags(source)
        if flags == AVX512:
            flags = (*AVX2, "-include", str(NATIVE / "avx512_emulated.h"))
        quick = (*flags, "-O1", "-Wno-psabi")  # SIMDe takes long to optimize
        parts.append(compile_object(source, folder / f"{number}.o", quick))
    subprocess.run([compiler(), "-shared", *map(str, parts), "-o", str(library)], check=True)
