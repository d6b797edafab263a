# SPDX-License-Identifier: Apache-2.0
"""With little memory, a session that may choose copies what fits and maps the rest, with equal bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from bcq import contract
from bcq.kernels.core import Core
from native_builds import NATIVE, compiler
from nodes import one_node, random_weight

CORE = Core.load()
ROWS, INPUTS, BITS = 64, 1024, 3
CODES = ROWS * INPUTS * BITS // 8  # bytes of one node

RUN = """
import json, sys
import numpy as np
from bcq.kernels import chosen
from bcq import runtime
from bcq.kernels.core import Core

model, profile = sys.argv[1:]
a = np.random.default_rng(0).standard_normal((2, 1024), dtype=np.float32)
outputs = {}
for weights in ("mapped", None):
    options = runtime.default_options()
    options.intra_op_num_threads = 1
    session = runtime.session(model, options, weights=weights, profile=None if weights else profile)
    outputs[weights] = [y.tobytes() for y in session.run(None, {"A": a})]
    del session
told = [node.weights for node in chosen.chosen_kernels(model)]
print(json.dumps([outputs["mapped"] == outputs[None], told, Core.load().memory_for_copies()]))
"""


def two_nodes(path: Path) -> Path:
    """Two products of one activation, each with codes of its own."""
    model, second = (
        one_node(contract.MATMUL, random_weight(ROWS, INPUTS, BITS, 128, seed=i), dims=("m",)) for i in (0, 1)
    )
    node = second.graph.node[0]
    node.name, node.output[0] = "second", "Z"
    for tensor in second.graph.initializer:
        tensor.name = f"{tensor.name}_2"
    node.input[1:] = [f"{name}_2" for name in node.input[1:]]
    model.graph.node.append(node)
    model.graph.initializer.extend(second.graph.initializer)
    model.graph.output.append(onnx.helper.make_tensor_value_info("Z", onnx.TensorProto.FLOAT, None))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("planted") / "planted.so"
    source = str(NATIVE / "planted_meminfo.c")
    subprocess.run([compiler("gcc"), "-shared", "-fPIC", source, "-o", str(library), "-ldl"], check=True)
    return library


def run(folder: Path, preloaded: Path, available: int) -> tuple[Any, ...]:
    """How a session holds the two nodes where so many bytes are left, and what `chosen_kernels` says."""
    meminfo, profile = folder / "meminfo", folder / "profile.jsonl"
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available // 1024} kB\n", encoding="ascii")
    before = [os.environ[name] for name in ("LD_PRELOAD",) if name in os.environ]
    environment = {name: value for name, value in os.environ.items() if name != "BCQ_WEIGHTS"}
    environment |= {"LD_PRELOAD": " ".join([*before, str(preloaded)]), "PLANTED_MEMINFO": str(meminfo)}
    command = [sys.executable, "-c", RUN, str(two_nodes(folder / "model.onnx")), str(profile)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in profile.read_text(encoding="ascii").splitlines()]
    held = {line["node"]: line["weights"] for line in lines}
    equal, told, room = json.loads(done.stdout)
    return equal, [held["the_node"], held["second"]], told, room


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="memory is read from /proc")
@pytest.mark.skipif(
    not CORE.has_own_order(CORE.select_matmul(bits=BITS, flags=CORE.flags())),
    reason="the kernel of this CPU reads the order of the file, so nothing is copied",
)
@pytest.mark.parametrize(
    ("available", "held"),
    [
        # Copies may take half of what is there, what they have included: 2 codes for the first, 3 for both.
        (1.9, ["mapped", "mapped"]),
        (2.5, ["resident", "mapped"]),
        (4.5, ["resident", "resident"]),
    ],
)
def test_what_fits_in_half_of_the_memory_is_copied_and_the_rest_is_mapped(
    available: float, held: list[str], tmp_path: Path, preloaded: Path
) -> None:
    amount = int(available * CODES) // 1024 * 1024
    assert run(tmp_path, preloaded, amount) == (True, held, held, amount // 2)
