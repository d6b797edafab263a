# SPDX-License-Identifier: Apache-2.0
"""Builds what C and C++ programs get: the installed package, and the C interface as a library for ctypes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from bcq.runtime import library_path
from native_builds import RUNTIME, compiler

EXAMPLES = RUNTIME.parent / "examples" / "cpp"
# Nothing here is timed, and optimizing takes most of a build.
_QUICK = ("-DBCQ_ISA_ONLY=scalar", "-DCMAKE_BUILD_TYPE=Debug")


def cmake(*arguments: str | Path) -> str:
    """Runs cmake; skips the test where there is none."""
    found = shutil.which("cmake")
    if found is None:
        pytest.skip("cmake is not on PATH")
    generator = {} if shutil.which("ninja") is None else {"CMAKE_GENERATOR": "Ninja"}
    done = subprocess.run(
        [found, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **generator}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def install(folder: Path) -> Path:
    """The prefix of an installed package whose C interface has the scalar kernels only.

    The operator library is the one that is tested everywhere else, to save half a minute.
    """
    compiler()
    cmake("-S", RUNTIME, "-B", folder / "build", *_QUICK)
    cmake("--build", folder / "build", "--target", "bcq_core", "bcq_native")
    shutil.copy(library_path(), folder / "build" / "libbcq_ops.so")
    cmake("--install", folder / "build", "--prefix", folder / "prefix")
    return folder / "prefix"


def shared(archive: Path, library: Path) -> Path:
    """The C interface of a static library as a shared one."""
    whole = ["-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive"]
    subprocess.run([compiler(), "-shared", "-o", str(library), *whole], check=True)
    return library


def onnxruntime_root(folder: Path, library: Path | None = None) -> Path:
    """A folder like an unpacked release of onnxruntime: headers, and a library; skips without.

    Args:
        folder: is made.
        library: of another machine; None takes the one of this process.
    """
    header = Path(os.environ.get("BCQ_ORT_HEADER", "/usr/include/onnxruntime/onnxruntime_c_api.h"))
    if not header.with_name("onnxruntime_cxx_api.h").is_file():
        pytest.skip("no C++ headers of onnxruntime; name its onnxruntime_c_api.h in BCQ_ORT_HEADER")
    library = library or next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if library is None:
        pytest.skip("this onnxruntime package has no libonnxruntime.so")
    (folder / "lib").mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
    (folder / "include").symlink_to(header.parent)
    return folder


def generate_example(folder: Path, operators: Path, library: Path | None = None, by: str = "g++") -> Path:
    """examples/cpp/generate.cc, built in a folder with an operator library and onnxruntime.

    Args:
        folder: a test's own.
        operators: libbcq_ops.so.
        library: as for `onnxruntime_root`.
        by: the compiler.
    """
    root, program = onnxruntime_root(folder / "onnxruntime", library), folder / "generate"
    include = [f"-isystem{root / 'include'}", f"-I{RUNTIME / 'capi'}"]
    linked = [operators, root / "lib" / "libonnxruntime.so"]
    where = f"-Wl,-rpath,{operators.parent}:{root / 'lib'}"
    flags = ["-std=c++17", "-Wall", "-Wextra"]
    ran(compiler(by), EXAMPLES / "generate.cc", *flags, *include, *linked, where, "-o", program)
    return program


def ran(*command: str | Path) -> str:
    """What a program prints, which must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
