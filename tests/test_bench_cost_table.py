# SPDX-License-Identifier: Apache-2.0
"""Cost tables: measured times are returned, others interpolated by bytes, bad files refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq.bench import contenders
from bcq.bench.cost_table import Cost, CostTable, packed_bytes
from bcq.bench.costs import cost_table
from bcq.errors import BcqError, InputError, UsageError
from bcq.packing import PackedWeight
from bench_results import ours, peer, result


def cost(rows: int, inputs: int, microseconds: float, bits: int = 3, **changes: Any) -> Cost:
    fields: dict[str, Any] = {
        "group_size": 128, "tokens": 1, "accuracy_level": 0, "threads": 2, "weights": "memory",
        "kernel": "avx2_t16", "low": microseconds, "high": microseconds, "best": microseconds,
    } | changes  # fmt: skip
    size = packed_bytes(rows, inputs, bits, fields["group_size"])
    return Cost(rows=rows, inputs=inputs, bits=bits, bytes=size, microseconds=microseconds, **fields)


def table(*costs: Cost) -> CostTable:
    return CostTable({"cpu": "A CPU"}, costs)


def test_a_measured_shape_gives_its_time() -> None:
    costs = table(cost(1024, 1024, 40.0), cost(4096, 1024, 150.0), cost(1024, 4096, 170.0))
    assert costs.microseconds(4096, 1024, 3, 128) == 150.0
    assert costs.microseconds(1024, 4096, 3, 128) == 170.0


def test_a_shape_between_is_interpolated_linearly_by_bytes() -> None:
    costs = table(cost(1024, 1024, 40.0), cost(3072, 1024, 120.0))
    assert costs.microseconds(2048, 1024, 3, 128) == pytest.approx(80.0)
    assert costs.microseconds(1024, 2048, 3, 128) == pytest.approx(80.0)


def test_outside_the_measured_sizes_time_grows_in_proportion_to_bytes() -> None:
    costs = table(cost(1024, 1024, 40.0), cost(2048, 1024, 70.0))
    assert costs.microseconds(512, 1024, 3, 128) == pytest.approx(20.0)
    assert costs.microseconds(4096, 1024, 3, 128) == pytest.approx(140.0)


def test_shapes_of_equal_size_are_averaged_when_another_shape_of_that_size_is_asked_for() -> None:
    costs = table(cost(4096, 1024, 150.0), cost(1024, 4096, 170.0))
    assert costs.microseconds(2048, 2048, 3, 128) == pytest.approx(160.0)


def test_another_group_size_is_answered_from_the_nearest_one_by_bytes() -> None:
    costs = table(cost(1024, 1024, 40.0), cost(2048, 1024, 80.0), cost(1024, 1024, 99.0, group_size=1024))
    more_scales = packed_bytes(1024, 1024, 3, 64) / packed_bytes(1024, 1024, 3, 128)
    assert costs.microseconds(1024, 1024, 3, 64) == pytest.approx(40.0 * more_scales)


def test_row_wise_scales_are_found_as_group_size_0_and_as_k() -> None:
    costs = table(cost(1024, 1024, 40.0), cost(1024, 1024, 38.0, group_size=1024))
    assert costs.microseconds(1024, 1024, 3, 0) == costs.microseconds(1024, 1024, 3, 1024) == 38.0


def test_bits_tokens_levels_and_threads_are_never_mixed() -> None:
    costs = table(
        cost(64, 64, 1.0, bits=2),
        cost(64, 64, 2.0),
        cost(64, 64, 3.0, tokens=4, weights="cache"),
        cost(64, 64, 4.0, accuracy_level=4),
        cost(64, 64, 5.0, threads=1),
    )
    assert costs.microseconds(64, 64, 2, 128) == 1.0
    assert costs.microseconds(64, 64, 3, 128) == 2.0
    assert costs.microseconds(64, 64, 3, 128, tokens=4) == 3.0
    assert costs.microseconds(64, 64, 3, 128, accuracy_level=4) == 4.0
    assert costs.microseconds(64, 64, 3, 128, threads=1) == 5.0


def test_weights_from_memory_are_preferred_to_cached_ones() -> None:
    costs = table(cost(64, 64, 1.0, weights="cache"), cost(64, 64, 2.0))
    assert costs.microseconds(64, 64, 3, 128) == 2.0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"bits": 5}, r"no bits 5, only \[3\]"),
        ({"tokens": 2}, r"no tokens 2, only \[1\]"),
        ({"accuracy_level": 4}, r"no accuracy_level 4, only \[0\]"),
        ({"threads": 8}, r"no threads 8, only \[2\]"),
        ({"rows": 0}, r"cost of 0 x 64"),
    ],
)
def test_what_was_not_measured_is_an_error_that_says_what_was(asked: dict[str, int], words: str) -> None:
    question = {"rows": 64, "inputs": 64, "bits": 3, "group_size": 128} | asked
    with pytest.raises(UsageError, match=words) as caught:
        table(cost(64, 64, 1.0)).microseconds(**question)
    assert caught.value.code == "E202"


@pytest.mark.parametrize(
    ("rows", "inputs", "bits", "group"), [(17, 40, 2, 32), (64, 128, 3, 128), (5, 7, 1, 7)]
)
def test_bytes_are_those_of_the_packed_tensors(rows: int, inputs: int, bits: int, group: int) -> None:
    packed: PackedWeight = contenders.random_packed(np.random.default_rng(0), rows, inputs, bits, group)
    assert packed_bytes(rows, inputs, bits, group) == packed.nbytes


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = table(cost(64, 64, 1.5), cost(64, 128, 2.5, bits=2))
    made.write(tmp_path / "costs.json")
    assert CostTable.read(tmp_path / "costs.json") == made
    assert [file.name for file in tmp_path.iterdir()] == ["costs.json"]
    data = json.loads((tmp_path / "costs.json").read_text())
    assert (data["format"], data["format_version"]) == ("bcq-cost-table", 1)
    assert data["units"] == {"time": "microseconds", "size": "bytes"}


def test_a_bench_becomes_a_table_with_each_level_that_a_kernel_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels = {0: "t16", 1: "exact", 4: "t16"}
    monkeypatch.setattr(
        "bcq.bench.costs.kernel_name", lambda rows, inputs, bits, group, level, tokens: levels[level]
    )
    measured = result(
        ours(7.0, kernel="t16"), ours(9.0, arithmetic="float32", kernel="exact"), peer("MatMul fp32", 1.0, 32)
    )
    costs = cost_table(measured).costs
    assert [(c.accuracy_level, c.kernel, c.microseconds) for c in costs] == [
        (0, "t16", 7.0),
        (4, "t16", 7.0),
        (1, "exact", 9.0),
    ]
    assert costs[0].weights == "memory"
    assert cost_table(measured).machine["read_gigabytes_per_second"] == {"2": 20.0}


def broken(change: Any) -> str:
    entry = {key: getattr(cost(64, 64, 1.0), key) for key in Cost.__dataclass_fields__}
    data: dict[str, Any] = {
        "format": "bcq-cost-table",
        "format_version": 1,
        "machine": {},
        "entries": [entry],
    }
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(format="else"), "format is not 'bcq-cost-table'"),
        (lambda data: data.update(format_version=2), "format_version: got 2, expected 1"),
        (lambda data: data.update(entries=[]), "expected a list 'entries'"),
        (lambda data: data.update(entries=[1]), r"entries\[0\]: got int, expected an object"),
        (lambda data: data["entries"][0].pop("bits"), r"entries\[0\]\.bits: got None"),
        (lambda data: data["entries"][0].update(rows=-1), r"rows: got -1, expected a whole number above 0"),
        (lambda data: data["entries"][0].update(rows=True), r"rows: got True"),
        (lambda data: data["entries"][0].update(microseconds=float("nan")), r"microseconds: got nan"),
        (lambda data: data["entries"][0].update(weights="disk"), r"expected 'memory' or 'cache'"),
        (lambda data: data["entries"][0].update(accuracy_level=9), r"accuracy_level: got 9, expected 0 to 4"),
    ],
)
def test_a_table_with_a_wrong_field_is_refused_with_its_name(tmp_path: Path, change: Any, words: str) -> None:
    file = tmp_path / "costs.json"
    file.write_text(broken(change))
    with pytest.raises(InputError, match=words) as caught:
        CostTable.read(file)
    assert caught.value.code == "E102"


@pytest.mark.parametrize(
    ("content", "code"), [(b"{", "E103"), (b"\xff\xfe", "E103"), (b"[" * 100_000, "E103"), (b"[]", "E102")]
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    file = tmp_path / "costs.json"
    file.write_bytes(content)
    with pytest.raises(BcqError) as caught:
        CostTable.read(file)
    assert caught.value.code == code


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json") as caught:
        CostTable.read(tmp_path / "none.json")
    assert caught.value.code == "E101"
