# SPDX-License-Identifier: Apache-2.0
"""The dry list: sizes as they will be, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq import packing, report
from bcq.calibration.settings import CalibrationOptions
from bcq.errors import InputError, UsageError
from bcq.export import export
from bcq.exporting.write import write_model
from bcq.matrices.listing import planned_export, planned_matrices, tile16_bytes
from bcq.matrices.plan import QuantizeOptions
from bcq.quantize import quantize
from bcq.solver import solve
from graphs import model_of, normal
from tiny_models import save


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


_TWO = """g (float[n, 64] x) => (float[n, 48] y) {
    h = MatMul (x, first)
    y = Gemm <transB = 1> (h, second)
}"""


def graph(folder: Path) -> tuple[Path, QuantizeOptions]:
    """A source of an export, and how to quantize it."""
    write_model(model_of(_TWO, first=normal(64, 96), second=normal(48, 96)), folder / "in.onnx")
    return folder / "in.onnx", QuantizeOptions(bits=2, method="greedy", overrides=("second=3",))


def base(folder: Path) -> tuple[Path, None]:
    """The same, quantized already."""
    quantize(save("gpt2", folder / "model"), folder / "base", QuantizeOptions(bits=2, method="greedy"))
    return folder / "base", None


@pytest.mark.parametrize("make", [graph, base])
def test_a_planned_export_is_the_one_that_is_made_and_writes_nothing(tmp_path: Path, make: Any) -> None:
    source, options = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    planned = planned_export(source, tmp_path / "out", options)
    assert sorted(tmp_path.rglob("*")) == before
    export(source, tmp_path / "out", options)
    made = report.read_report(tmp_path / "out") or []
    assert {(row.name, row.bits, row.packed_bytes) for row in planned if not row.tied} == {
        (row.name, row.bits, row.packed_bytes) for row in made
    }


def test_a_planned_export_is_refused_for_what_would_refuse_the_export(tmp_path: Path) -> None:
    source, options = graph(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="taken"):
        planned_export(source, tmp_path / "taken", options)
    with pytest.raises(UsageError, match="accuracy level"):
        planned_export(source, tmp_path / "out", options, accuracy_level=9)
    with pytest.raises(UsageError, match="calibrate"):
        planned_export(source, tmp_path / "out", options, calibration=CalibrationOptions(tmp_path / "text"))
    with pytest.raises(UsageError, match="nothing"):
        planned_export(source, tmp_path / "out", QuantizeOptions(overrides=("nothing=2",)))
    assert not (tmp_path / "out").exists()
