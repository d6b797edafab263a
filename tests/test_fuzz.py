# SPDX-License-Identifier: Apache-2.0
"""Ten seconds of each fuzzer that ``make fuzz`` runs at length; readers in Python have their own tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bcq.runtime import library_path
from native_builds import NATIVE, RUNTIME, compiler

FUZZ = Path(__file__).parent / "fuzz"
SECONDS = 10


def clang() -> str:
    """clang with its fuzzer runtime; skips the test where either is missing."""
    found = compiler("clang++")
    asked = subprocess.run([found, "-print-runtime-dir"], capture_output=True, text=True, check=True)
    folder = Path(asked.stdout.strip())
    if not list(folder.glob("libclang_rt.fuzzer*")) and not list(folder.parent.rglob("libclang_rt.fuzzer*")):
        pytest.skip(f"{folder} has no fuzzer runtime (Debian: libclang-rt-14-dev)")
    return found


def run(program: Path) -> str:
    """Runs a fuzzer without a corpus and returns what it wrote."""
    options = [f"-max_total_time={SECONDS}", "-max_len=256", "-len_control=0", f"-artifact_prefix={program}-"]
    done = subprocess.run([program, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def test_nodes_of_any_kind_are_refused_or_run_without_a_finding(tmp_path: Path) -> None:
    # The portable kernels only: instrumented kernels of one instruction set take a minute to compile.
    options = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -g1", "-DBCQ_PORTABLE=ON", "-DBCQ_FUZZ=ON"]
    options += ["-DBCQ_SANITIZE=fuzzer-no-link,address,undefined", f"-DCMAKE_CXX_COMPILER={clang()}"]
    configure = ["cmake", "-S", str(NATIVE), "-B", str(tmp_path), "-G", "Ninja", *options]
    subprocess.run(configure, check=True, capture_output=True)
    build = ["cmake", "--build", str(tmp_path), "--target", "fuzz_node"]
    subprocess.run(build, check=True, capture_output=True)
    assert "Done" in run(tmp_path / "fuzz_node")


def test_kernels_agree_with_the_scalar_kernel_on_random_problems(tmp_path: Path) -> None:
    program, library = tmp_path / "fuzz_kernels", library_path()
    sources = [str(FUZZ / "fuzz_kernels.cc"), str(NATIVE / "fake_node.cc"), str(NATIVE / "fake_ort.cc")]
    flags = ["-std=c++17", "-O1", "-fsanitize=fuzzer", f"-I{RUNTIME}", f"-I{NATIVE}"]
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    subprocess.run([clang(), *sources, *flags, *link], check=True)
    assert "Done" in run(program)
