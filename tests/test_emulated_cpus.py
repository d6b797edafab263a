# SPDX-License-Identifier: Apache-2.0
"""The library on CPUs that are not there: a user-mode emulator refuses every instruction that they lack."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq.kernels.core import Core
from nodes import activations, product, random_weight
from one_cpu import everything, runnable

EMULATOR = "qemu-x86_64-static"
pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 CPUs"),
    pytest.mark.skipif(
        shutil.which(EMULATOR) is None, reason=f"{EMULATOR} is not installed (Debian: qemu-user-static)"
    ),
]


@cache
def on(cpu: str, *arguments: str) -> dict[str, Any]:
    """What ``one_cpu.py`` says there. An instruction that the CPU lacks ends the process."""
    script = Path(__file__).with_name("one_cpu.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BCQ_LIBRARY": str(Core.load().path)}
    environment.pop("BCQ_ISA", None)
    done = subprocess.run(
        [str(shutil.which(EMULATOR)), "-cpu", cpu, sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@cache
def here() -> dict[str, Any]:
    return everything(with_session=False)


def test_haswell_runs_the_avx2_kernels() -> None:
    told = on("Haswell")
    assert told["isa"] == "avx2"
    assert told["selected"] == ["avx2_t16", "avx2_exact", "avx2_t16", "avx2_t16", "avx2_t8"]
    assert told["gather"] == "avx2"
    assert set(told["matmul_digests"]) == {"avx2_t16", "avx2_t8", "avx2_exact", "scalar"}


def test_haswell_computes_the_bits_that_this_cpu_computes() -> None:
    shared = set(runnable(Core.load(), "BcqMatMul")) & set(on("Haswell")["matmul_digests"])
    assert shared
    for name in shared:
        assert on("Haswell")["matmul_digests"][name] == here()["matmul_digests"][name], name
    for name in set(on("Haswell")["gather_digests"]) & set(here()["gather_digests"]):
        assert on("Haswell")["gather_digests"][name] == here()["gather_digests"][name], name


def test_a_cpu_without_avx_loads_the_library_and_takes_the_scalar_kernels() -> None:
    told = on("Nehalem", "session")
    assert told["isa"] == "scalar"
    assert set(told["selected"]) == {"scalar"}
    assert told["gather"] == "scalar"
    assert set(told["matmul_digests"]) == {"scalar"}
    assert told["matmul_digests"]["scalar"] == here()["matmul_digests"]["scalar"]
    assert told["gather_digests"]["scalar"] == here()["gather_digests"]["scalar"]


def test_a_cpu_without_avx_runs_a_model_in_onnxruntime() -> None:
    y = np.array(on("Nehalem", "session")["session"]).reshape(2, 20)
    # The scalar kernel sums in double: one rounding to float32.
    np.testing.assert_allclose(y, product(activations(2, 64), random_weight(20, 64, 2, 32)), rtol=1e-6)


def test_the_emulator_does_refuse_an_instruction_that_the_cpu_lacks(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    source = tmp_path / "avx2.cc"
    source.write_text('int main() { asm volatile("vpaddd %ymm0, %ymm0, %ymm0"); }\n')
    subprocess.run([compiler, str(source), "-o", str(tmp_path / "avx2")], check=True)
    command = [str(shutil.which(EMULATOR)), "-cpu"]
    assert subprocess.run([*command, "Haswell", str(tmp_path / "avx2")], capture_output=True).returncode == 0
    refused = subprocess.run([*command, "Nehalem", str(tmp_path / "avx2")], capture_output=True, cwd=tmp_path)
    assert refused.returncode != 0
