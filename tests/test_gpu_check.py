# SPDX-License-Identifier: Apache-2.0
"""``make gpu-check`` in rehearsal: all checks hold on the emulated library, and what is missing is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bcq.kernels.cuda import Cuda
from cuda_builds import emulated

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import gpu_check
import gpu_checks
import gpu_peers
import gpu_pieces
import gpu_report
from gpu_pieces import Outcome, Piece, Setting
from gpu_weights import random_weight


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Cuda:
    return emulated(tmp_path_factory.getbasetemp() / "any")


def test_a_rehearsal_runs_every_piece_that_needs_no_device_and_writes_the_page(
    cuda: Cuda, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = gpu_check.main(["--rehearse", str(cuda.path), "--output", str(tmp_path)])
    told = capsys.readouterr().out
    assert failures == 0, told
    pages = list(tmp_path.iterdir())
    assert [page.name for page in pages] == ["cuda-a-rehearsal.md"]
    page = pages[0].read_text()
    for piece in gpu_pieces.PIECES:
        assert f" {piece.name} (" in page
        needs_device = "device" in piece.needs
        assert (f"not available {piece.name} (" in page) == needs_device
    assert "| 64x256 | 1 | 2 | digits |" in page
    assert "wide128 float16" in page  # its errors
    assert "cuBLAS fp16" in page


def test_every_type_that_a_kernel_takes_is_compared(cuda: Cuda) -> None:
    kernels = (*gpu_pieces.BEST, *gpu_pieces.WIDE)
    assert set(kernels) == set(cuda.kernels())
    facts = gpu_checks.parity(cuda, "cpu", gpu_checks.RAGGED[1:2], (1, 3), kernels)
    assert facts.startswith("32 problems")  # (3 types x 2 kernels + 2 types x 5 tile kernels) x two M
    assert not gpu_checks.takes("wide128", torch.float16, gpu_checks.RAGGED[0], sm=100)
    assert not gpu_checks.takes("tiles8", torch.bfloat16, gpu_checks.RAGGED[0], sm=75)


def test_a_wrong_result_fails_a_check(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "LARGEST", dict.fromkeys(gpu_checks.LARGEST, 0.0))
    with pytest.raises(gpu_checks.Failed, match="relative error"):
        gpu_checks.parity(cuda, "cpu", gpu_checks.RAGGED[:1], (1,), ("digits",))


def test_bytes_of_a_shape_are_those_of_its_tensors() -> None:
    for shape in gpu_checks.RAGGED:
        weight = random_weight(shape, "cpu")
        tensors = [weight.codes, weight.alpha, *([] if weight.offset is None else [weight.offset])]
        assert shape.nbytes == sum(tensor.nbytes for tensor in tensors)


def fail(setting: Setting) -> str:
    raise gpu_checks.Failed("as planned")


def test_a_failing_piece_is_told_and_raises_nothing() -> None:
    outcome = gpu_pieces.run_piece(Piece("one", 1, (), fail), Setting("cpu", 0))
    assert (outcome.status, outcome.text) == ("FAILED", "Failed: as planned")


@pytest.mark.parametrize(
    ("need", "reason"), [("no-such-program", "is not installed"), ("device", "rehearsal")]
)
def test_a_piece_that_lacks_something_is_not_available_and_does_not_run(need: str, reason: str) -> None:
    outcome = gpu_pieces.run_piece(Piece("one", 1, (need,), fail), Setting("cpu", 0))
    assert outcome.status == "not available"
    assert reason in outcome.text


WORKER = """
import os, sys, time
for line in sys.stdin:
    name = line.strip()
    if name == "dies":
        os._exit(3)
    if name == "hangs":
        time.sleep(60)
    print('{"name": "%s", "status": "ok", "text": "", "seconds": 0, "tables": []}' % name, flush=True)
"""


def test_a_piece_that_dies_or_hangs_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    popen = subprocess.Popen

    def start(command: list[str], **options: object) -> object:
        return popen([command[0], str(script)], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", start)
    pieces = [Piece(name, 2.0, (), fail) for name in ("first", "dies", "second", "hangs", "third")]
    options = gpu_check.parse(["--output", str(tmp_path), "--seconds", "60"])
    outcomes = gpu_check.run_pieces(pieces, options)
    assert [outcome.status for outcome in outcomes] == ["ok", "FAILED", "ok", "FAILED", "ok"]
    assert "ended with 3" in outcomes[1].text
    assert "did not end in 2 s" in outcomes[3].text


def test_pieces_behind_the_time_are_left_out_and_a_failed_build_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = gpu_check.parse(["--output", str(tmp_path), "--seconds", "0"])
    assert gpu_check.run_pieces([Piece("one", 9, (), fail)], late)[0].status == "left out"

    class Broken:
        def __init__(self, *_: object) -> None: ...

        def run(self, piece: Piece, seconds: float) -> Outcome:
            return Outcome(piece.name, "FAILED", "", 0.0)

        def is_alive(self) -> bool:
            return True

        def stop(self) -> int:
            return 0

    monkeypatch.setattr(gpu_check, "Worker", Broken)
    in_time = gpu_check.parse(["--output", str(tmp_path)])
    pieces = [Piece("build", 9, (), fail, needed_by_all=True), Piece("two", 9, (), fail)]
    assert len(gpu_check.run_pieces(pieces, in_time)) == 1


def test_tables_are_markdown() -> None:
    assert gpu_report.table(("M", "us"), [("1", "2.0")]) == "| M | us |\n|---|--:|\n| 1 | 2.0 |"


@pytest.mark.parametrize("bits", [2, 4])
def test_the_peer_of_a_bench_multiplies_with_what_its_reference_says(bits: int) -> None:
    # The same node on the CPU provider: a wrong reading of its layout would make every comparison fail.
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    N, K = 32, 256
    packed, scales = gpu_peers.random_matrix(N, K, bits, seed=0)
    sizes: dict[str, Any] = {"K": K, "N": N, "bits": bits, "block_size": 128}
    node = helper.make_node("MatMulNBits", ["A", "B", "s"], ["Y"], domain="com.microsoft", **sizes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", K])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["M", N])],
        [
            numpy_helper.from_array(packed, "B"),
            numpy_helper.from_array(scales.astype(np.float32).reshape(-1), "s"),
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    a = np.random.default_rng(1).standard_normal((3, K)).astype(np.float32)
    y = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"A": a})[0]
    exact = torch.from_numpy(a).double() @ gpu_peers.dequantized(packed, scales, bits, "cpu").T
    # float32 sums of 256 products of the size of one
    np.testing.assert_allclose(y, exact.numpy(), rtol=0, atol=1e-4)
