# SPDX-License-Identifier: Apache-2.0
"""Weights are mapped, not copied: loading a model grows resident memory by far less than its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bcq import contract
from big_model import write_big_model
from nodes import one_node, random_weight

MEASURE = """
import json, sys
import numpy as np
from bcq.runtime import session

def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096

small = session(sys.argv[1])
small.run(None, {"A": np.zeros((1, 64), np.float32)})
before = resident()
big = session(sys.argv[2])
loaded = resident()
big.run(None, {"A": np.ones((1, 4096), np.float32)})
print(json.dumps({"load": loaded - before, "run": resident() - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_loading_grows_resident_memory_by_less_than_a_tenth_of_the_weights(tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    small.write_bytes(
        one_node(contract.MATMUL, random_weight(32, 64, 2, 32), dims=("m",)).SerializeToString()
    )
    model, weights = write_big_model(tmp_path)
    assert weights >= 64 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(model)], capture_output=True, text=True, check=True
    )
    grown = json.loads(done.stdout)
    assert grown["load"] < 0.1 * weights, grown
    # The first run reads every page once; nothing may be copied on top of that.
    assert grown["run"] < 1.2 * weights, grown
