# SPDX-License-Identifier: Apache-2.0
"""The figures at the end of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from bcq import report
from bcq.report import Row


def row(name: str = "w", **changes: object) -> Row:
    """A 16 x 64 matrix at 3 bits: 3 * 16 * 64 / 8 bytes of codes and 3 * 16 * 2 of alphas."""
    fields: dict[str, object] = {
        "name": name, "kind": "linear", "rows": 16, "inputs": 64, "bits": 3, "group_size": 64,
        "dense_bytes": 4096, "packed_bytes": 480, "reason": "", "requested": False,
    }  # fmt: skip
    return Row(**{**fields, **changes})  # type: ignore[arg-type]


def dense(name: str, reason: str = "too small", **changes: object) -> Row:
    return row(name, bits=None, group_size=0, packed_bytes=0, reason=reason, **changes)


def test_summary_counts_packed_matrices_and_their_share() -> None:
    summary = report.summarize([row("a"), row("b"), dense("c")], bytes_after=10_000, seconds=1.0)
    assert (summary.packed, summary.total) == (2, 3)
    assert summary.share == pytest.approx(2 / 3)


def test_bits_per_weight_count_alphas_but_no_dense_matrix() -> None:
    summary = report.summarize([row("a"), dense("c")], bytes_after=10_000, seconds=1.0)
    assert summary.bits_per_weight == pytest.approx(8 * 480 / 1024)


def test_size_before_is_size_after_plus_what_packing_saved() -> None:
    summary = report.summarize([row("a")], bytes_after=1_000, seconds=1.0)
    assert summary.bytes_fp32 == 1_000 - 480 + 4_096
    assert summary.bytes_fp16 == summary.bytes_fp32 // 2


def test_a_matrix_that_the_user_keeps_does_not_lower_the_share() -> None:
    kept = dense("c", "kept by --set 'c=keep'", requested=True)
    assert report.summarize([row("a"), kept], 1_000, 1.0).share == 1.0


def test_a_packed_matrix_with_a_dense_reader_left_counts_as_dense() -> None:
    both = row("a", reason="Einsum 'x' reads it")
    summary = report.summarize([both], bytes_after=5_000, seconds=1.0)
    assert (summary.packed, summary.share) == (0, 0.0)
    assert summary.bytes_fp32 == 5_000 - 480


def test_a_tied_matrix_is_counted_where_it_is_stored() -> None:
    tied = row(
        "lm_head", kind="tied", bits=None, dense_bytes=0, packed_bytes=0, reason="shares the matrix of a"
    )
    summary = report.summarize([row("a"), tied], 1_000, 1.0)
    assert (summary.packed, summary.total, summary.share) == (1, 1, 1.0)


def test_an_empty_model_gives_zeros_and_no_division_error() -> None:
    summary = report.summarize([], 0, 0.0)
    assert (summary.share, summary.bits_per_weight) == (0.0, 0.0)
    assert "0 of 0" in report.summary_text(summary)


def test_records_of_other_modules_become_rows() -> None:
    @dataclass(frozen=True)
    class Record:
        name: str = "w"
        kinds: tuple[str, ...] = ("gather", "matmul")
        rows: int = 16
        inputs: int = 64
        bits: int | None = 3
        group_size: int = 64
        dense_bytes: int = 4096
        packed_bytes: int = 480
        reason: str = ""

    assert report.rows_of([Record()]) == [row("w", kind="gather+matmul")]


def test_a_report_file_reads_back(tmp_path: Path) -> None:
    rows = [row("a"), dense("b")]
    (tmp_path / report.REPORT_FILE).write_text(report.report_json(rows, {"bits": 3}), encoding="utf-8")
    assert report.read_report(tmp_path) == rows


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"matrices": [1]}', '{"matrices": [{"name": "a"}]}'])
def test_a_report_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    assert report.read_report(tmp_path) is None
    (tmp_path / report.REPORT_FILE).write_text(content, encoding="utf-8")
    assert report.read_report(tmp_path) is None


def test_a_report_is_the_same_for_the_same_matrices() -> None:
    text = report.report_json([row("a")], {})
    assert text == report.report_json([row("a")], {})
    assert set(json.loads(text)) == {"options", "matrices", "fused"}


def test_the_end_of_a_run_names_what_stays_dense_and_why() -> None:
    rows = [row("a"), *(dense(f"d{number}") for number in range(report.LISTED + 2))]
    text = report.summary_text(report.summarize(rows, 1_000, 1.0), rows)
    assert "d0 [16 x 64]: too small" in text
    assert "and 2 more" in text


def test_a_table_aligns_numbers_to_the_right() -> None:
    lines = report.table(["model", "MB"], [["a", "1.5"], ["long name", "10"]]).splitlines()
    assert lines == [
        "| model     |  MB |",
        "| --------- | --: |",
        "| a         | 1.5 |",
        "| long name |  10 |",
    ]


def test_peak_ram_is_that_of_a_python_process() -> None:
    assert 5e6 < report.peak_ram() < 1e12  # an interpreter takes at least 5 MB


def test_the_worst_matrix_is_named_with_its_error() -> None:
    rows = [row("a", relative_error=0.01), row("b", relative_error=0.25), row("c")]
    text = report.summary_text(report.summarize(rows, 1000, 1.0), rows)
    assert [line for line in text.splitlines() if line.startswith("worst")] == [
        "worst       b: relative error 0.2500 (squared)"
    ]
    assert "worst" not in report.summary_text(report.summarize(rows[2:], 1000, 1.0), rows[2:])


def test_a_report_of_before_offsets_were_recorded_can_be_read(tmp_path: Path) -> None:
    document = json.loads(report.report_json([row("a", offset=True)], {}))
    (tmp_path / report.REPORT_FILE).write_text(json.dumps(document), encoding="utf-8")
    assert report.read_report(tmp_path) == [row("a", offset=True)]
    del document["matrices"][0]["offset"]
    (tmp_path / report.REPORT_FILE).write_text(json.dumps(document), encoding="utf-8")
    assert report.read_report(tmp_path) == [row("a")]
