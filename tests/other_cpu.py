# SPDX-License-Identifier: Apache-2.0
"""The library built for 64-bit Arm by the toolchain file, and problems that it solves under an emulator."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq.packing import PackedWeight
from native_builds import BUILD_SECONDS, NATIVE, RUNTIME
from nodes import Array

TOOLCHAIN = RUNTIME / "cmake" / "toolchains" / "linux-aarch64.cmake"
COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = (os.environ.get("BCQ_QEMU_AARCH64", ""), "qemu-aarch64", "qemu-aarch64-static")
SYSTEM = Path("/usr/aarch64-linux-gnu")  # where Debian's cross compiler keeps libc and libstdc++


@dataclass(frozen=True)
class Problem:
    """What one call of the C ABI computes: a matrix product, or rows of the matrix where ``a`` holds indices.

    Attributes:
        kernel: its name.
        weight: the packed matrix ``[N, K]``.
        a: float32 or float16 ``[M, K]``, or the indices ``[M]``, int64.
        level: accuracy_level.
        parts: pieces that the work is cut into; 0 lets the library choose.
        resident: whether a product reads a copy of the codes in the kernel's own order.
    """

    kernel: str
    weight: PackedWeight
    a: Array
    level: int = 0
    parts: int = 0
    resident: bool = False

    @property
    def is_gather(self) -> bool:
        """Whether ``a`` holds indices."""
        return bool(np.issubdtype(self.a.dtype, np.integer))

    @property
    def result(self) -> tuple[tuple[int, int], np.dtype[Any]]:
        """Shape and type of what is computed."""
        columns = self.weight.inputs if self.is_gather else self.weight.rows
        return (len(self.a), columns), np.dtype(np.float32) if self.is_gather else self.a.dtype

    def bytes(self) -> bytes:
        """As ``native/run_problems.cc`` reads it."""
        w = self.weight
        half = self.a.dtype == np.float16
        sizes = (self.is_gather, len(self.a), w.inputs, w.rows, w.group_size, w.bits, w.planes, half)
        header = struct.pack("<11q32s", *sizes, self.level, self.parts, self.resident, self.kernel.encode())
        arrays = [np.ascontiguousarray(x).tobytes() for x in (self.a, *w.tensors().values())]
        return header + b"".join(struct.pack("<q", len(data)) + data for data in arrays)


@dataclass(frozen=True)
class OtherCpu:
    """A folder with the library and the program that runs problems, built for 64-bit Arm."""

    folder: Path
    emulator: str

    def choices(self, cpu: str, isa: str = "") -> list[str]:
        """Instruction set, gather kernel, and the matmul kernels of levels 0 to 4 on an emulated CPU."""
        return self._run(cpu, isa).split()

    def solve(self, problems: list[Problem], folder: Path, cpu: str = "max") -> list[Array]:
        """The results of some problems, computed by one process on an emulated CPU."""
        file, results = folder / "problems", folder / "results"
        file.write_bytes(b"".join(problem.bytes() for problem in problems))
        self._run(cpu, "", file, results)
        data, found, at = results.read_bytes(), [], 0
        for problem in problems:
            shape, dtype = problem.result
            found.append(np.frombuffer(data, dtype, shape[0] * shape[1], at).reshape(shape))
            at += found[-1].nbytes
        assert at == len(data)
        return found

    def emulation(self, cpu: str) -> list[str]:
        """What stands before a command so that an emulated CPU runs it."""
        return [self.emulator, "-cpu", cpu, "-L", str(SYSTEM)]

    def skip_before(self, version: int, why: str) -> None:
        """Skips the test where the emulator is older."""
        told = subprocess.run([self.emulator, "--version"], check=True, capture_output=True, text=True).stdout
        found = re.search(r"version (\d+)", told)
        if found is None or int(found[1]) < version:
            pytest.skip(f"qemu before {version} {why}; name a newer qemu-aarch64 in BCQ_QEMU_AARCH64")

    def _run(self, cpu: str, isa: str, *arguments: Path) -> str:
        environment = {**os.environ, "BCQ_ISA": isa}
        command = [*self.emulation(cpu), str(self.folder / "run_problems")]
        done = subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout


def other_cpu(folder: Path) -> OtherCpu:
    """The build, made once for all workers of a test run; skips where tools are missing.

    Args:
        folder: a test's own folder. The build lies beside the folders of all workers.
    """
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed (Debian: g++-aarch64-linux-gnu)")
    if emulator is None:
        pytest.skip(f"{EMULATORS[1]} is not installed (Debian: qemu-user)")
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    shared = folder.parents["PYTEST_XDIST_WORKER" in os.environ] / "other_cpu"
    try:
        shared.mkdir()
    except FileExistsError:  # another worker builds it, or has done so
        _wait_for(shared / "built")
    else:
        build(shared)
        (shared / "built").touch()
    return OtherCpu(shared, emulator)


def build(folder: Path) -> None:
    """Builds library and program with the toolchain file."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [
        "cmake",
        "-S",
        str(RUNTIME),
        "-B",
        str(folder),
        *generator,
        f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}",
    ]
    _quiet(configure)
    _quiet(["cmake", "--build", str(folder)])
    library = folder / "libbcq_ops.so"
    program = folder / "run_problems"
    flags = ["-std=c++17", "-O1", f"-I{RUNTIME}", f"-Wl,-rpath,{folder}", "-o", str(program)]
    _quiet([COMPILER, str(NATIVE / "run_problems.cc"), str(library), *flags])


def _quiet(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def _wait_for(path: Path) -> None:
    for _ in range(BUILD_SECONDS):
        if path.exists():
            return
        time.sleep(1)
    pytest.fail("the library for 64-bit Arm was not built, see the test that tried")
