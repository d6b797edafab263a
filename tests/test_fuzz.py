# SPDX-License-Identifier: Apache-2.0
"""Twenty seconds of the fuzzers that ``make fuzz`` runs at length."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bcq.runtime import library_path
from fuzz import decoder_seeds, seeds
from native_builds import NATIVE, RUNTIME, compiler

TESTS = Path(__file__).parent
SECONDS = 4  # of each fuzzer, twice that for the one of all readers in Python


def clang() -> str:
    """clang with its fuzzer runtime; skips the test where either is missing."""
    found = compiler("clang++")
    asked = subprocess.run([found, "-print-runtime-dir"], capture_output=True, text=True, check=True)
    folder = Path(asked.stdout.strip())
    if not list(folder.glob("libclang_rt.fuzzer*")) and not list(folder.parent.rglob("libclang_rt.fuzzer*")):
        pytest.skip(f"{folder} has no fuzzer runtime (Debian: libclang-rt-14-dev)")
    return found


def run(*command: str | Path, seconds: int = SECONDS, longest: int = 256, **variables: str) -> str:
    """Runs a fuzzer and returns what it wrote; options of libFuzzer go behind the corpus."""
    options = [f"-max_total_time={seconds}", f"-max_len={longest}", "-len_control=0", "-timeout=60"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([*command, *options], capture_output=True, env=environment, cwd=command[-1])
    written = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, written[-4000:]
    return written


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fuzzers under sanitizers, with portable kernels: instrumented others take a minute to compile."""
    folder = tmp_path_factory.mktemp("fuzzers")
    options = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -g1", "-DBCQ_PORTABLE=ON", "-DBCQ_FUZZ=ON"]
    options += ["-DBCQ_SANITIZE=fuzzer-no-link,address,undefined", f"-DCMAKE_CXX_COMPILER={clang()}"]
    configure = ["cmake", "-S", str(NATIVE), "-B", str(folder), "-G", "Ninja", *options]
    subprocess.run(configure, check=True, capture_output=True)
    build = ["cmake", "--build", str(folder), "--target", "fuzz_node", "fuzz_model", "fuzz_decoder"]
    subprocess.run(build, check=True, capture_output=True)
    return folder


def test_nodes_of_any_kind_are_refused_or_run_without_a_finding(built: Path, tmp_path: Path) -> None:
    assert "Done" in run(built / "fuzz_node", tmp_path)


def test_any_file_for_the_reader_in_c_is_refused_or_read_without_a_finding(
    built: Path, tmp_path: Path
) -> None:
    seeds.export(tmp_path / "export")
    seeds.corpus(tmp_path / "corpus", tmp_path / "export")
    export = str(tmp_path / "export")
    assert "Done" in run(built / "fuzz_model", tmp_path / "corpus", longest=16384, BCQ_FUZZ_EXPORT=export)


def test_any_file_for_the_decoder_in_c_is_refused_or_runs_without_a_finding(
    built: Path, tmp_path: Path
) -> None:
    decoder_seeds.write(tmp_path / "export", tmp_path / "corpus")
    export = str(tmp_path / "export")
    assert "Done" in run(built / "fuzz_decoder", tmp_path / "corpus", longest=16384, BCQ_FUZZ_EXPORT=export)


def test_kernels_agree_with_the_scalar_kernel_on_random_problems(tmp_path: Path) -> None:
    program, library = tmp_path / "fuzz_kernels", library_path()
    sources = [
        str(TESTS / "fuzz" / "fuzz_kernels.cc"),
        str(NATIVE / "fake_node.cc"),
        str(NATIVE / "fake_ort.cc"),
    ]
    flags = ["-std=c++17", "-O1", "-fsanitize=fuzzer", f"-I{RUNTIME}", f"-I{NATIVE}"]
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    subprocess.run([clang(), *sources, *flags, *link], check=True)
    (tmp_path / "corpus").mkdir()
    assert "Done" in run(program, tmp_path / "corpus")


@pytest.mark.skipif(find_spec("atheris") is None, reason="the package atheris has no wheel for this Python")
def test_any_file_for_a_reader_in_python_is_refused_or_read_without_a_finding(tmp_path: Path) -> None:
    seeds.make(tmp_path / "readers")
    program = (sys.executable, "-m", "fuzz.fuzz_readers", tmp_path)
    assert "Done" in run(*program, seconds=2 * SECONDS, longest=16384)
