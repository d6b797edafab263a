# SPDX-License-Identifier: Apache-2.0
"""The parts of a budget: targets as text, formats and their bytes, curves of loss, tables as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq import packing
from bcq.budget.formats import BITS, DENSE, Format, aligned, exactly, formats, parse_label
from bcq.budget.sensitivity import Sensitivity, Table, monotone
from bcq.budget.target import parse_target
from bcq.budget.weight_errors import weight_errors
from bcq.errors import InputError, UsageError
from bcq.exporting.write import ALIGNMENT, MIN_EXTERNAL_BYTES
from bcq.matrices.plan import QuantizeOptions, choice_for
from bcq.solver import relative_error, solve
from graphs import normal


@pytest.mark.parametrize(
    ("kind", "text", "amount"),
    [
        ("bpw", "2.5", 2.5),
        ("size", "120MB", 120e6),
        ("size", " 1.5 gib", 1.5 * 2**30),
        ("size", "800kb", 800e3),
        ("latency", "5ms", 5000.0),
        ("latency", "250us", 250.0),
    ],
)
def test_targets_are_read_with_their_units(kind: str, text: str, amount: float) -> None:
    assert parse_target(kind, text).amount == pytest.approx(amount)


MALFORMED = [
    ("bpw", "0"), ("bpw", "-2"), ("bpw", "2 bits"), ("bpw", "nan"), ("bpw", ""), ("bpw", "1e3"),
    ("size", "120"), ("size", "MB"), ("size", "0MB"), ("size", "120 apples"), ("latency", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), MALFORMED)
def test_a_target_of_another_form_is_refused_with_an_example(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"--target-{kind}") as caught:
        parse_target(kind, text)
    assert caught.value.code == "E202"
    assert caught.value.hint.startswith("For example")


@pytest.mark.parametrize("inputs", [32, 100, 384, 1024])
def test_bytes_of_every_format_are_those_of_the_packed_matrix(inputs: int) -> None:
    for form in formats(inputs):
        assert form.bits is not None
        solved = solve(normal(20, inputs), form.bits, form.group_size or inputs, "greedy", form.offset)
        packed = packing.pack(solved)
        assert form.nbytes(20, inputs) == packed.nbytes
        assert form.file_bytes(20, inputs) == sum(aligned(part.nbytes) for part in packed.tensors().values())


def test_formats_are_distinct_and_a_group_as_long_as_a_row_is_row_wise() -> None:
    found = formats(64)
    assert len(set(found)) == len(found)
    assert {form.group_size for form in found} == {0, 32}
    assert {form.bits for form in found} == set(BITS)


def test_small_tensors_stay_in_the_model_file_and_others_take_whole_pages() -> None:
    assert aligned(MIN_EXTERNAL_BYTES - 1) == MIN_EXTERNAL_BYTES - 1
    assert aligned(MIN_EXTERNAL_BYTES) == ALIGNMENT
    assert aligned(ALIGNMENT + 1) == 2 * ALIGNMENT


@pytest.mark.parametrize("name", ["transformer.h.0.mlp.c_fc.weight", "onnx::MatMul_7", "a[0]*b?", "a=b"])
def test_a_format_as_an_exception_fits_its_matrix_alone(name: str) -> None:
    for form in (Format(3, 64, True), Format(2), DENSE):
        options = QuantizeOptions(bits=8, overrides=(str(form.override(name)),))
        choice = choice_for(name, options)
        assert Format(choice.bits, choice.group_size, choice.offset) == form
        assert parse_label(form.label) == form
        assert choice_for("another", options).bits == 8
    assert exactly("a[0]") == "a[[]0]"


def test_a_loss_is_interpolated_between_errors_and_in_proportion_outside() -> None:
    forms = {
        Format(bits): error for bits, error in zip((1, 2, 3, 4, 5), (0.4, 0.2, 0.1, 0.01, 0.0), strict=True)
    }
    entry = Sensitivity(8, 8, ((0.02, 1.0), (0.2, 10.0)), forms)
    assert entry.loss(Format(1)) == pytest.approx(20.0)
    assert entry.loss(Format(2)) == pytest.approx(10.0)
    assert entry.loss(Format(3)) == pytest.approx(5.0)
    assert entry.loss(Format(4)) == pytest.approx(0.5)
    assert entry.loss(Format(5)) == 0.0
    assert entry.loss(DENSE) == 0.0


def test_measured_losses_that_fall_with_a_larger_error_are_raised() -> None:
    assert monotone({0.3: 2.0, 0.1: 1.0, 0.2: 0.5, 0.0: 0.0}) == ((0.1, 1.0), (0.2, 1.0), (0.3, 2.0))


def test_sampled_errors_are_those_of_the_whole_where_the_sample_is_all_of_it() -> None:
    matrix = normal(6, 96)
    errors = weight_errors(matrix, [*formats(96), DENSE], "greedy")
    assert errors[DENSE] == 0.0
    for form in (Format(2, 0, True), Format(3, 32)):
        assert form.bits is not None
        solved = solve(matrix, form.bits, form.group_size or 96, "greedy", form.offset)
        assert errors[form] == relative_error(matrix, solved)


def test_a_sample_of_many_rows_is_close_to_the_whole() -> None:
    matrix = np.concatenate([normal(300, 64), 3 * normal(300, 64, seed=2)])
    sampled = weight_errors(matrix, [Format(2)], "alternating")[Format(2)]
    whole = relative_error(matrix, solve(matrix, 2, 64, "alternating"))
    # 4096 squared errors, which spread about as much as their mean: 1.6 %; four times that.
    assert sampled == pytest.approx(whole, rel=0.064)


def some_table() -> Table:
    errors = {Format(2): 0.1, Format(3, 64, True): 0.03}
    return Table("kl", "ab12", {"w": Sensitivity(8, 64, ((0.1, 0.5), (0.3, 0.9)), errors)})


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    some_table().write(tmp_path / "s.json")
    assert Table.read(tmp_path / "s.json") == some_table()
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


CHANGES: list[dict[str, Any]] = [
    {"format": "other"},
    {"format_version": 2},
    {"measure": "luck"},
    {"matrices": None},
    {"matrices": [{"name": "w"}]},
    {"points": []},
    {"points": [[0.3, 1.0], [0.1, 2.0]]},
    {"points": [[0.1, -1.0]]},
    {"points": [[0.1, 0.0]]},
    {"points": [[0.1, True]]},
    {"errors": {"9:g0": 0.1}},
    {"errors": {"3:g64": -0.1}},
    {"errors": {"three": 0.1}},
    {"rows": "8"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_table_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    some_table().write(file)
    data = json.loads(file.read_text())
    for key, value in change.items():
        (data if key in data else data["matrices"][0])[key] = value
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"s\.json") as caught:
        Table.read(file)
    assert caught.value.code == "E102"
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"[", b"[" * 100_000, b"\xff\xfe", b"[]", b"7"])
def test_a_file_that_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(InputError, match="no sensitivity table") as caught:
        Table.read(tmp_path / "s.json")
    assert caught.value.code == "E102"


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere") as caught:
        Table.read(tmp_path / "nowhere")
    assert caught.value.code == "E101"
