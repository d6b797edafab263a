# SPDX-License-Identifier: Apache-2.0
"""Mapped weights are not copied: loading grows resident memory by far less; resident ones are there once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bcq import contract
from big_model import write_big_model
from native_builds import NATIVE, RUNTIME, run_program
from nodes import one_node, random_weight

MEASURE = """
import json, sys
import numpy as np
from bcq.runtime import session

def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096

small = session(sys.argv[1], weights=sys.argv[3])
small.run(None, {"A": np.zeros((1, 64), np.float32)})
before = resident()
big = session(sys.argv[2], weights=sys.argv[3])
loaded = resident()
big.run(None, {"A": np.ones((1, 4096), np.float32)})
print(json.dumps({"load": loaded - before, "run": resident() - before}))
"""


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc"
)


def measure(folder: Path, held: str) -> tuple[dict[str, int], int]:
    """Bytes by which loading and the first run have grown resident memory, and the bytes of the weights."""
    small = folder / "small.onnx"
    small.write_bytes(
        one_node(contract.MATMUL, random_weight(32, 64, 2, 32), dims=("m",)).SerializeToString()
    )
    model, weights = write_big_model(folder)
    assert weights >= 64 * 2**20
    command = [sys.executable, "-c", MEASURE, str(small), str(model), held]
    environment = {name: value for name, value in os.environ.items() if name != "BCQ_WEIGHTS"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout), weights


@needs_proc
def test_loading_mapped_weights_grows_resident_memory_by_less_than_a_tenth_of_them(tmp_path: Path) -> None:
    grown, weights = measure(tmp_path, "mapped")
    assert grown["load"] < 0.1 * weights, grown
    # The first run reads every page once; nothing may be copied on top of that.
    assert grown["run"] < 1.2 * weights, grown


@needs_proc
def test_resident_weights_are_in_memory_once_and_their_mapped_pages_are_let_go(tmp_path: Path) -> None:
    grown, weights = measure(tmp_path, "resident")
    # Codes are 8/9 of the weights here; the rest, the alphas, stays mapped until the first run.
    assert 0.8 * weights < grown["load"] < weights, grown
    assert grown["run"] < 1.2 * weights, grown


@needs_proc
def test_blocks_keep_apart_only_unchanged_pages_are_let_go_and_limits_are_read(tmp_path: Path) -> None:
    done = run_program(
        tmp_path, NATIVE / "memory.cc", RUNTIME / "core" / "memory.cc", arguments=[tmp_path / "file"]
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
