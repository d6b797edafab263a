# SPDX-License-Identifier: Apache-2.0
"""No memory, no disk: one clear line, exit code 6, and the former output as it was."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

from bcq import cli
from bcq.errors import InputError, is_out_of_memory
from bcq.exporting.write import write_model
from bcq.files.integrity import check_integrity
from graphs import model_of, normal

GRAPH = "main (float[m, 512] x) => (float[m, 512] y) { y = MatMul (x, w) }"
QUICK = ("--bits", "4", "--method", "greedy", "--quiet")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB: the model fits, its export does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("making a file system needs rights that this process does not have")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_file_system_is_told_and_the_former_output_stays(
    tiny_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(model_of(GRAPH, w=normal(512, 512)), tmp_path / "in.onnx")
    output = tiny_disk / "out"
    words = ["export", str(tmp_path / "in.onnx"), "-o", str(output), "--group-size", "512"]
    assert cli.main([*words, "--bits", "1", "--method", "greedy", "--quiet"]) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    capsys.readouterr()
    assert cli.main([*words, *QUICK]) == 6
    assert capsys.readouterr().err.startswith(f"error[E601]: {output} cannot be written: No space left on")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert check_integrity(output).ok


def test_a_lack_of_memory_is_told_wherever_it_comes() -> None:
    tests = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "hostile.limits", "2", "36"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 4, done.stderr[-2000:]
    assert done.returncode == 0, found
    assert {run["code"] for run in found} >= {"6"}


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("bad allocation"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_library_s_way_to_say_it_is_understood(fault: Exception) -> None:
    assert is_out_of_memory(fault)
    assert cli.as_bcq_error(fault).exit_code == 6


@pytest.mark.parametrize(
    "fault", [ValueError("x"), OSError(errno.ENOSPC, "full"), InputError("E103", "bad alloc")]
)
def test_other_faults_are_no_lack_of_memory(fault: Exception) -> None:
    assert not is_out_of_memory(fault)
