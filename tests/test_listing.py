# SPDX-License-Identifier: Apache-2.0
"""The dry list: sizes as they will be, and where it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bcq import packing, report
from bcq.errors import InputError
from bcq.listing import planned_matrices, tile16_bytes
from bcq.plan import QuantizeOptions
from bcq.solver import solve


@pytest.mark.parametrize(
    ("rows", "inputs", "bits", "group_size", "offset"),
    [(16, 32, 1, 32, False), (17, 33, 3, 32, False), (5, 100, 2, 0, True), (40, 96, 4, 64, True)],
)
def test_planned_bytes_are_those_of_the_packed_matrix(
    rows: int, inputs: int, bits: int, group_size: int, offset: bool
) -> None:
    matrix = np.random.default_rng(0).standard_normal((rows, inputs)).astype(np.float32)
    weight = solve(matrix, bits, group_size or inputs, method="greedy", offset=offset)
    packed = sum(tensor.nbytes for tensor in packing.pack(weight).tensors().values())
    assert tile16_bytes(rows, inputs, bits, group_size, offset) == packed


def test_a_folder_with_a_report_tells_what_was_done(tmp_path: Path) -> None:
    rows = [report.Row("w", "linear", 16, 32, 2, 32, 2048, 192, "", False)]
    (tmp_path / report.REPORT_FILE).write_text(report.report_json(rows, {}), encoding="utf-8")
    assert planned_matrices(tmp_path, QuantizeOptions(bits=4)) == rows


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        planned_matrices(tmp_path / "nowhere", QuantizeOptions())
