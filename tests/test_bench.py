# SPDX-License-Identifier: Apache-2.0
"""The kernel bench: it checks before it times, and its figures follow their formulas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bcq import bench
from bcq.bench import contender, contenders, measure, roster, tables
from bcq.bench.bandwidth import ReadBandwidth
from bcq.bench.contender import Contender, Float32, Weights
from bcq.bench.overview import to_overview
from bcq.bench.plan import Plan, problems
from bcq.errors import ParityFailure, UsageError
from bench_results import ours, peer, result

SHAPE = (48, 96)


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is read in 64 KiB instead of 192 MiB."""
    monkeypatch.setattr(measure, "ReadBandwidth", lambda threads: ReadBandwidth(threads, 2**16))


def plan(cold: bool = False, **choices: object) -> Plan:
    chosen = {"bits": (2, 3), "arithmetics": ("near-exact",), "rounds": 2, **choices}
    return Plan(problems([SHAPE], (1, 5), (1,), (cold,)), **chosen)  # type: ignore[arg-type]


def test_each_contender_is_measured_on_each_problem_and_within_its_error_class() -> None:
    found = bench.run(plan())
    names = [m.contender for m in found.measurements if m.tokens == 1]
    assert names[:8] == [
        "BcqMatMul q=2 g=128",
        "BcqMatMul q=3 g=128",
        "MatMul fp32",
        "MatMulNBits 2-bit b=128",
        "MatMulNBits 4-bit b=128",
        "MatMulNBits 4-bit b=32",
        "MatMulNBits 4-bit b=128 fp32",
        "MatMulNBits 8-bit b=128",
    ]
    assert all(m.best <= m.low <= m.microseconds <= m.high and m.best > 0 for m in found.measurements)
    assert all(m.error <= contender.ERRORS[m.arithmetic] for m in found.measurements)
    assert {m.tokens for m in found.measurements} == {1, 5}
    assert {m.kernel for m in found.measurements if not m.ours} == {""}


def test_weights_from_memory_are_many_distinct_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "COLD_BYTES", 20_000)
    found = bench.run(plan(cold=True, peers="none"))
    assert [(m.contender, m.tokens) for m in found.measurements] == [
        (f"BcqMatMul q={bits} g=128", tokens) for tokens in (1, 5) for bits in (2, 3)
    ]


def test_weights_of_a_contender_differ_from_copy_to_copy() -> None:
    random = np.random.default_rng(0)
    for made in (contenders.nbits(32, 128, 4), contenders.bcq(32, 128, 2, 64), contenders.dense(4, 8)):
        first, second = (next(iter(made.draw(random).tensors.values())) for _ in range(2))
        assert (first != second).any()


def test_random_packed_weights_keep_their_padding_zero() -> None:
    packed = contenders.random_packed(np.random.default_rng(0), rows=17, inputs=40, bits=2, group=32)
    assert packed.codes.shape == (2, 2, 2, 16)
    assert (packed.codes[0, 1] < 2**8).all()
    assert packed.codes[0, 0].any()
    for tensor in (packed.codes, packed.alpha_1, packed.alpha_rest):
        assert not tensor[1, ..., 1:].any()


def test_the_result_is_json_and_names_the_machine() -> None:
    data = json.loads(json.dumps(bench.run(plan(peers="none")).to_json()))
    assert data["measurements"][0]["floor"] > 0
    assert data["measurements"][0]["kernel"]
    assert {"cpu", "cores", "isa", "library", "onnxruntime", "made"} <= set(data["machine"])


def test_bandwidth_share_and_floor_follow_their_formulas() -> None:
    m = ours(400.0, weight_bytes=8_000_000, bandwidth=40.0)
    assert m.gigabytes_per_second == pytest.approx(20.0)
    assert m.share == pytest.approx(0.5)
    assert m.floor == pytest.approx(200.0)
    assert m.bits_per_weight == pytest.approx(8 * 8_000_000 / 64**2)


def test_ratios_name_the_best_peer_of_each_width() -> None:
    table = bench.to_markdown(
        result(
            ours(10.0, weight_bytes=100_000),
            peer("MatMulNBits 2-bit b=128", 30.0, 2),
            peer("MatMulNBits 2-bit b=128 lut", 12.0, 2),
            peer("MatMulNBits 4-bit b=32", 9.0, 4),
            peer("MatMulNBits 4-bit b=128 fp32", 50.0, 4, "float32"),
            peer("MatMul fp32", 70.0, 32, "float32"),
        )
    )
    header, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert header[8:] == ["2-bit", "4-bit", "4-bit fp32", "fp32"]
    assert row == [
        "64 x 64", "1", "2", "memory", "3", "near-exact", "10", "50%",
        "1.20x lut", "0.90x b=32", "5.00x b=128", "7.00x",
    ]  # fmt: skip


def test_the_summary_has_near_exact_products_from_memory_and_batches_of_the_largest_shape() -> None:
    found = result(
        ours(10.0),
        ours(9.0, arithmetic="int8"),
        ours(11.0, cold=False),
        ours(12.0, tokens=32, cold=False),
        ours(13.0, tokens=32, cold=False, rows=16),
        peer("MatMulNBits 8-bit b=128", 9.0, 8, tokens=32, cold=False, rows=16),
    )
    rows = tables.to_summary(found).splitlines()[2:]
    assert [row.split("|")[7].strip() for row in rows] == ["10", "12"]
    assert "8-bit" not in tables.to_summary(found)


def test_the_overview_averages_ratios_over_shapes_by_what_is_asked_of_each() -> None:
    found = result(
        ours(10.0),
        peer("MatMulNBits 4-bit b=128", 20.0, 4),
        peer("MatMulNBits 4-bit b=32", 30.0, 4),
        ours(10.0, rows=128),
        peer("MatMulNBits 4-bit b=128", 5.0, 4, rows=128),
        ours(10.0, tokens=4, cold=False),
        peer("MatMul fp32", 70.0, 32, "float32", tokens=4, cold=False),
        ours(10.0, arithmetic="float32", tokens=4, cold=False),
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in to_overview(found).splitlines()]
    assert rows[2:] == [
        ["1", "2", "memory", "3", "near-exact", "2", "-", "-", "1.00x (0.50 to 2.00)", "-"],
        ["4", "2", "cache", "3", "near-exact", "1", "-", "-", "-", "7.00x (7.00 to 7.00)"],
    ]


def test_the_table_has_every_figure_and_who_was_absent_and_why() -> None:
    table = bench.to_table(result(ours(10.0, kernel="avx2_t16"), absent={"OpenVINO": "not installed"}))
    assert "N=64 K=64 M=1, 2 threads, weights from memory, memory read 20.0 GB/s (best 25.0)" in table
    assert "avx2_t16" in table
    assert "OpenVINO: not installed" in table


def test_a_product_of_ours_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contender.ERRORS, "near-exact", 1e-12)
    with pytest.raises(ParityFailure, match=r"BcqMatMul q=2 g=128: relative error .* expected at most 1e-12"):
        bench.run(plan())


class BrokenModel:
    """Of a peer that computes zeros, or cannot open a session."""

    def __init__(self, opens: bool) -> None:
        self.opens = opens

    def session(self, a: Float32, threads: int) -> BrokenModel:
        if not self.opens:
            raise RuntimeError("no such instruction")
        return self

    def run(self) -> None:
        pass

    def output(self, copy: int) -> Float32:
        return np.zeros((5, SHAPE[0]), np.float32)


def broken(name: str, opens: bool) -> Contender:
    def draw(random: np.random.Generator) -> Weights:
        weight = random.standard_normal(SHAPE, dtype=np.float32)
        return Weights({"w": weight}, lambda: weight)

    return Contender(name, "openvino", 4, "int8", draw, lambda copies, folder: BrokenModel(opens))


def test_a_peer_that_fails_or_computes_something_else_is_absent_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peers = [broken("zeros", True), broken("closed", False)]
    monkeypatch.setattr(roster, "_onnxruntime", lambda rows, inputs, every: iter(peers))
    found = bench.run(plan(bits=(2,)))
    assert not any(m.contender in ("zeros", "closed") for m in found.measurements)
    assert "relative error 1.0e+00" in found.absent["zeros"]
    assert found.absent["closed"] == "no such instruction"


def test_a_class_that_the_same_kernel_computes_is_named_and_not_measured_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contenders, "kernel_name", lambda *sizes: "one_for_all")
    who = roster.roster(plan(arithmetics=("near-exact", "int8"), peers="none"), *SHAPE)
    assert [c.name for c in who.contenders] == ["BcqMatMul q=2 g=128", "BcqMatMul q=3 g=128"]
    reason = who.absent["BcqMatMul q=2 g=128 int8"]
    assert reason == "one_for_all computes it here, as in BcqMatMul q=2 g=128"


def test_mapped_and_resident_weights_are_contenders_of_their_own() -> None:
    who = roster.roster(plan(bits=(3,), weights=("mapped", "resident"), peers="none"), *SHAPE)
    names = ["BcqMatMul q=3 g=128 mapped", "BcqMatMul q=3 g=128 resident"]
    assert [c.name for c in who.contenders] == names


def test_packages_that_are_not_installed_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*sizes: object) -> Contender:
        raise ImportError("No module named 'somewhere'")

    for name in ("torch_int8", "openvino_int4", "ggml"):
        monkeypatch.setattr(roster, name, missing)
    absent = roster.roster(plan(), *SHAPE).absent
    for name in ("torch int8 dynamic", "OpenVINO 4-bit g=128", "ggml Q4_0"):
        assert absent[name] == "No module named 'somewhere'"


def test_onnxruntimes_look_ups_are_absent_where_they_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "lut_is_used", lambda: False)
    assert "no look-up kernel" in roster.roster(plan(), 128, 128).absent["MatMulNBits 2-bit b=128 lut"]
    assert "multiples of 128" in roster.roster(plan(), 48, 96).absent["MatMulNBits 2-bit b=128 lut"]


def test_a_slow_peer_takes_part_only_with_one_token_and_cached_weights() -> None:
    slow = contenders.nbits(*SHAPE, 2, arithmetic="float32")
    assert [slow.takes(*problem) for problem in ((1, False), (1, True), (4, False))] == [True, False, False]


def test_cold_weights_of_a_tiny_shape_are_refused_before_any_copy_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "_Entry", None)  # the first one would fail
    with pytest.raises(UsageError, match=r"64x64.*copies") as caught:
        measure.run(Plan(problems([(4096, 4096), (64, 64)]), bits=(3,)))
    assert caught.value.code == "E202"
    assert "--weights hot" in caught.value.hint


def test_products_are_checked_on_all_of_a_few_tokens_and_a_sample_of_many() -> None:
    assert measure.checked_tokens(4) == [0, 1, 2, 3]
    assert measure.checked_tokens(256) == [0, 1, 128, 255]


def test_a_model_of_nodes_is_what_programs_can_open(tmp_path: Path) -> None:
    made = contenders.bcq(*SHAPE, 2, 32)
    copies = [made.draw(np.random.default_rng(i)) for i in range(2)]
    session = made.prepare(copies, tmp_path).session(np.eye(96, dtype=np.float32), 1)
    session.run()
    # Level 0 may be off by 1e-4 of the largest value where one input alone is not zero (ops/README.md).
    np.testing.assert_allclose(session.output(1).T, copies[1].dense(), atol=1e-4 * 0.04)
    assert (tmp_path / "model.onnx").is_file()


def test_a_peer_without_rounding_of_activations_is_classed_as_float32() -> None:
    exact = replace(broken("p", True), arithmetic="int8")
    assert measure._arithmetic(exact, 1e-7) == "float32"
    assert measure._arithmetic(exact, 1e-2) == "int8"
