# SPDX-License-Identifier: Apache-2.0
"""Resident weights give the bits of mapped ones, are shared where equal, and go away with their session."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bcq import contract
from nodes import activations, one_node, open_session, random_weight

RESIDENT = {"bcq.weights": "resident"}
MAPPED = {"bcq.weights": "mapped"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCQ_WEIGHTS", raising=False)


def both(model: onnx.ModelProto, feeds: dict[str, Any], threads: int = 1) -> list[bytes]:
    """What a model gives with mapped and with resident weights."""
    sessions = [open_session(model, threads, entries) for entries in (MAPPED, RESIDENT)]
    return [b"".join(y.tobytes() for y in session.run(None, feeds)) for session in sessions]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("level", [0, 1, 4])
@pytest.mark.parametrize(
    ("rows", "inputs", "bits", "group"), [(37, 200, 3, 200), (300, 384, 2, 128), (16, 64, 8, 32)]
)
def test_resident_weights_give_the_bits_of_mapped_ones(
    dtype: Any, level: int, rows: int, inputs: int, bits: int, group: int
) -> None:
    weight = random_weight(rows, inputs, bits, group, offset=True)
    model = one_node(contract.MATMUL, weight, dtype, ("m",), change={"accuracy_level": level})
    for count in (1, 6):
        a = activations(count, inputs, dtype)
        a[0, 3] = np.inf if count > 1 else a[0, 3]
        mapped, resident = both(model, {"A": a}, threads=2)
        assert mapped == resident


def test_nodes_that_claim_the_same_hash_with_other_codes_keep_their_own() -> None:
    # The hash of a node is what its file says: here two nodes lie about it.
    one, other = (
        one_node(contract.MATMUL, random_weight(32, 64, 2, 32, seed=i), dims=("m",)) for i in (1, 2)
    )
    claimed = next(a for a in one.graph.node[0].attribute if a.name == "code_hash").s
    for attribute in other.graph.node[0].attribute:
        if attribute.name == "code_hash":
            attribute.s = claimed
    feeds = {"A": activations(3, 64)}
    expected = [open_session(model, entries=MAPPED).run(None, feeds)[0] for model in (one, other)]
    sessions = [open_session(model, entries=RESIDENT) for model in (one, other)]
    for session, y in zip(sessions, expected, strict=True):
        np.testing.assert_array_equal(session.run(None, feeds)[0], y)


def test_a_gather_beside_it_still_reads_the_mapped_codes() -> None:
    weight = random_weight(64, 64, 3, 32)
    model = one_node(contract.MATMUL, weight, dims=("m",))
    gather = onnx.helper.make_node(
        "BcqGather", ["rows", *model.graph.node[0].input[1:]], ["E"], domain=contract.DOMAIN
    )
    names = set(contract.GATHER.attributes)
    gather.attribute.extend(a for a in model.graph.node[0].attribute if a.name in names)
    model.graph.node.append(gather)
    model.graph.input.append(onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["i"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("E", onnx.TensorProto.FLOAT, None))
    mapped, resident = both(model, {"A": activations(2, 64), "rows": np.arange(-5, 9)})
    assert mapped == resident


MEASURE = """
import gc, json, sys
from bcq.runtime import default_options, register_library
import onnxruntime, numpy as np

def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096

def opened(model):
    options = default_options()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("bcq.weights", "resident")
    register_library(options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

opened(sys.argv[1]).run(None, {"A": np.ones((1, 64), np.float32)})
gc.collect()
sizes = [resident()]
sessions = [opened(sys.argv[2])]
sizes.append(resident())
sessions.append(opened(sys.argv[2]))
sizes.append(resident())
sessions.clear()
gc.collect()
sizes.append(resident())
for _ in range(3):
    opened(sys.argv[2]).run(None, {"A": np.ones((1, 4096), np.float32)})
gc.collect()
sizes.append(resident())
print(json.dumps([size - sizes[0] for size in sizes[1:]]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_sessions_of_one_model_share_a_copy_and_closing_them_gives_it_back(tmp_path: Path) -> None:
    from big_model import write_big_model

    small = tmp_path / "small.onnx"  # opened first: a process's first session brings megabytes of its own
    small.write_bytes(
        one_node(contract.MATMUL, random_weight(32, 64, 2, 32), dims=("m",)).SerializeToString()
    )
    model, weights = write_big_model(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(small), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    one, two, none, again = json.loads(done.stdout)
    # Codes are 8/9 of these weights, in huge pages. A second session maps the file too, but keeps no page of
    # its own.
    assert 0.8 * weights < one < weights
    assert two < one + 0.1 * weights
    assert none < 0.1 * weights
    assert again < none + 0.05 * weights
    gc.collect()
