# SPDX-License-Identifier: Apache-2.0
"""The checks of ``make gpu-check`` hold on the emulated library, and find what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bcq.cuda import Cuda
from cuda_builds import emulated

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import gpu_bench
import gpu_check
import gpu_checks
from gpu_weights import Shape, random_weight


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Cuda:
    return emulated(tmp_path_factory.getbasetemp() / "any")


def test_parity_holds_for_every_kernel_and_type(cuda: Cuda) -> None:
    facts = gpu_checks.parity(cuda, "cpu", gpu_checks.RAGGED[1:2], (1, 3))
    assert facts.startswith("28 problems")  # (3 types x 2 kernels + 2 types x 4 tile kernels) x two M


def test_selection_strides_bits_and_gather_hold(cuda: Cuda) -> None:
    shape = Shape(40, 200, 2, 64, True)
    gpu_checks.selected(cuda, "cpu", shape, (1, 3))
    gpu_checks.same_bits(cuda, "cpu", shape, (3,), repeats=1)
    gpu_checks.gather(cuda, "cpu", shape)


def test_a_wrong_result_fails_a_check(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "LARGEST", dict.fromkeys(gpu_checks.LARGEST, 0.0))
    with pytest.raises(gpu_checks.Failed, match="relative error"):
        gpu_checks.parity(cuda, "cpu", gpu_checks.RAGGED[:1], (1,))


def test_bytes_of_a_shape_are_those_of_its_tensors() -> None:
    for shape in gpu_checks.RAGGED:
        weight = random_weight(shape, "cpu")
        tensors = [weight.codes, weight.alpha, *([] if weight.offset is None else [weight.offset])]
        assert shape.nbytes == sum(tensor.nbytes for tensor in tensors)


def test_a_failing_step_is_counted_and_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    steps = gpu_check.Steps(1e9)

    def fail() -> str:
        raise gpu_checks.Failed("as planned")

    assert not steps.run("one", fail)
    assert steps.run("two", lambda: "fine")
    assert steps.failures == 1
    assert "FAILED one" in capsys.readouterr().out


def test_tables_are_markdown() -> None:
    assert gpu_bench.table(("M", "us"), [("1", "2.0")]) == "| M | us |\n|---|--:|\n| 1 | 2.0 |"
