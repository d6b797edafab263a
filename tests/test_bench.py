# SPDX-License-Identifier: Apache-2.0
"""The kernel bench: it checks before it times, and its figures follow their formulas."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bcq import bench
from bcq.bench import contenders, measure
from bcq.errors import ParityFailure, UsageError


def small(cold: bool = False) -> bench.BenchResult:
    return bench.run([(48, 96)], bits=(2, 3), m_values=(1, 2), threads=(1,), cold=(cold,), rounds=2)


def test_each_contender_is_measured_on_each_problem_and_within_its_error_class() -> None:
    result = small()
    names = [m.contender for m in result.measurements if m.tokens == 1]
    assert names == [
        "BcqMatMul q=2 g=128",
        "BcqMatMul q=3 g=128",
        "MatMul fp32",
        "MatMulNBits 2-bit b=128",
        "MatMulNBits 4-bit b=128",
        "MatMulNBits 8-bit b=128",
    ]
    assert all(m.low <= m.microseconds <= m.high and m.best > 0 for m in result.measurements)
    assert {m.tokens for m in result.measurements} == {1, 2}


def test_weights_from_memory_are_many_distinct_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "COLD_BYTES", 20_000)
    assert len(small(cold=True).measurements) == 12


def test_the_result_is_json_and_a_table() -> None:
    result = small()
    assert json.loads(json.dumps(result.to_json()))["measurements"][0]["floor"] > 0
    table = bench.to_table(result)
    assert "BcqMatMul q=3 g=128" in table
    assert "N=48 K=96 M=2, 1 thread, weights in cache" in table


def test_ratios_compare_with_float32_and_the_nearest_peer_that_has_at_least_as_many_bits() -> None:
    result = small()
    times = {"BcqMatMul q=3 g=128": 10.0, "MatMulNBits 4-bit b=128": 15.0, "MatMul fp32": 70.0}
    timed = [replace(m, microseconds=times.get(m.contender, 1.0)) for m in result.measurements]
    row = bench.to_ratios(replace(result, measurements=tuple(timed))).splitlines()[3]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "48 x 96", "1", "1", "cache", "3", "10", "4-bit", "1.50x", "7.0x",
    ]  # fmt: skip


def test_bandwidth_and_floor_follow_their_formulas() -> None:
    m = replace(small().measurements[0], weight_bytes=8_000_000, microseconds=400.0, bandwidth=40.0)
    assert m.gigabytes_per_second == pytest.approx(20.0)
    assert m.floor == pytest.approx(200.0)


def test_a_contender_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "NEAR_EXACT_ERROR", 1e-12)
    with pytest.raises(ParityFailure, match=r"BcqMatMul q=2 g=128: relative error .* expected at most 1e-12"):
        small()


def test_weights_of_a_contender_differ_from_copy_to_copy() -> None:
    random = np.random.default_rng(0)
    contender = contenders.nbits(32, 128, 4)
    assert (contender.draw(random).tensors["B"] != contender.draw(random).tensors["B"]).any()


def test_cold_weights_of_a_tiny_shape_are_refused_before_any_copy_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "_Model", None)  # the first one would fail
    with pytest.raises(UsageError, match=r"64x64.*copies") as caught:
        measure.run(shapes=[(4096, 4096), (64, 64)], bits=(3,))
    assert caught.value.code == "E202"
    assert "--weights hot" in caught.value.hint
