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
# NEON by SIMDe, whose header stands for a compiler's own.
NEON = (*AVX2, "-DBCQ_EMULATED_NEON=1", f"-I{NATIVE / 'neon'}")
ARCHITECTURES = (
    "-DBCQ_ARCH_X86=1",
    "-DBCQ_ARCH_ARM64=1",
)  # rows of kernels; each file is compiled for its own
COMMON = ("-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", *ARCHITECTURES, "-fPIC", f"-I{RUNTIME}")


def isa_flags(source: Path) -> tuple[str, ...]:
    """The flags that a file of x86 kernels is compiled with, by its name, as in ``CMakeLists.txt``."""
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


def emulated_flags(source: Path) -> tuple[str, ...]:
    """The same where AVX-512 and NEON are emulated, on a CPU with AVX2; skips where SIMDe is missing."""
    emulated = {"avx512": (*AVX2, "-include", str(NATIVE / "avx512_emulated.h")), "neon": NEON}
    flags = emulated.get(source.stem.split("_")[0], isa_flags(source))
    if flags != isa_flags(source) and not Path("/usr/include/simde/x86/avx512.h").is_file():
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    return (*flags, "-O1", "-Wno-psabi")  # SIMDe takes long to optimize


def emulated_library(folder: Path) -> Path:
    """A library whose AVX-512 and NEON kernels run on a CPU with AVX2, by SIMDe; skips where that is missing.

    Args:
        folder: a test's own folder. The library is built once, beside the folders of all workers of the run.
    """
    emulated_flags(KERNELS / "avx512.cc")
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
        parts.append(compile_object(source, folder / f"{number}.o", emulated_flags(source)))
    subprocess.run([compiler(), "-shared", *map(str, parts), "-o", str(library)], check=True)
