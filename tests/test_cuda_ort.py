# SPDX-License-Identifier: Apache-2.0
"""The operators of the CUDA provider: registered where the CUDA part is, with its results, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bcq import contract
from bcq.runtime import library_path
from cuda_builds import emulated
from native_builds import NATIVE, RUNTIME, compiler
from nodes import Array, activations, one_node, random_weight, run_node
from test_runtime_abi import HEADER, needs_header


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated(tmp_path_factory.getbasetemp() / "any").path


def compile_node_program(folder: Path) -> Path:
    program = folder / "cuda_node"
    sources = [str(NATIVE / name) for name in ("cuda_node.cc", "fake_ort.cc", "fake_node.cc")]
    library = library_path()
    flags = ["-std=c++17", "-O1", f"-I{RUNTIME}", f"-I{NATIVE}", str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([compiler(), *sources, *flags, "-o", str(program)], check=True, capture_output=True)
    return program


def test_nodes_on_the_cuda_provider_agree_with_the_cpu_and_refuse_what_is_malformed(
    part: Path, tmp_path: Path
) -> None:
    program = compile_node_program(tmp_path)
    environment = {**os.environ, "BCQ_CUDA_LIBRARY": str(part)}
    done = subprocess.run([str(program)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_cuda_part_no_operator_is_registered_for_it(tmp_path: Path) -> None:
    program = compile_node_program(tmp_path)
    broken = tmp_path / "no_library.so"
    broken.write_bytes(b"no library")
    for path in (
        broken,
        tmp_path / "missing.so",
        library_path(),
    ):  # the last one is a library of something else
        environment = {**os.environ, "BCQ_CUDA_LIBRARY": str(path)}
        done = subprocess.run([str(program)], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "no operator for CUDA was registered\n")


ON_THE_CPU = """
import sys
import numpy as np
from test_cuda_ort import cpu_session_result
np.save(sys.argv[1], cpu_session_result())
"""


def cpu_session_result() -> Array:
    """One node on onnxruntime's CPU provider."""
    model = one_node(contract.MATMUL, random_weight(50, 100, 3, 32))
    return run_node(model, {"A": activations(2, 100)[None]})


def test_a_session_on_the_cpu_is_the_same_with_the_cuda_part(part: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "BCQ_CUDA_LIBRARY": str(part), "PYTHONPATH": str(Path(__file__).parent)}
    result = tmp_path / "y.npy"
    subprocess.run([sys.executable, "-c", ON_THE_CPU, str(result)], env=environment, check=True)
    np.testing.assert_array_equal(np.load(result), cpu_session_result())


@needs_header
def test_the_slot_of_the_stream_is_where_the_real_header_has_it(tmp_path: Path) -> None:
    source = tmp_path / "slot.cc"
    source.write_text(
        f'#include "{HEADER}"\n#include <cstddef>\n#include <type_traits>\n'
        "#define BCQ_ORT_SLOT(position, Result, name, arguments) \\\n"
        "  static_assert(offsetof(OrtApi, name) == (position) * sizeof(void*)); \\\n"
        "  static_assert(std::is_same_v<decltype(OrtApi::name), Result(*) arguments noexcept> || \\\n"
        "                std::is_same_v<decltype(OrtApi::name), Result(*) arguments>);\n"
        '#include "cuda/slots.inc"\n',
        encoding="utf-8",
    )
    command = [compiler(), "-std=c++17", f"-I{RUNTIME}", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_cuda_package_is_for_the_same_version() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    cpu, cuda = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for folder in (RUNTIME.parent, RUNTIME / "cuda")
    )
    assert cuda["version"] == cpu["version"]
    assert cuda["dependencies"] == [f"onnx-bcq=={cpu['version']}"]
