# SPDX-License-Identifier: Apache-2.0
"""An export: what is refused before any work, what the folder holds, and what stays when it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq.errors import BcqError, InputError, ResourceError, UnsupportedError, UsageError
from bcq.export import export
from bcq.exporting.write import write_model
from bcq.files.atomic import AtomicFolder
from bcq.files.exported import ExportedWeights
from bcq.files.manifest import check_manifest
from bcq.matrices.plan import QuantizeOptions
from bcq.parity import verify
from graphs import model_of, normal
from tiny_models import save

TWO_LAYERS = """graph (float[n, 64] x) => (float[n, 48] y) {
    h = MatMul (x, first)
    r = Relu (h)
    y = Gemm <transB = 1> (r, second, bias)
}"""
HALF_ODD = """graph (float[n, 64] x) => (float[2, n, 64] y) {
    h = MatMul (x, first)
    y = MatMul (h, grid)
}"""
QUICK = QuantizeOptions(bits=2, group_size=32, method="greedy")


@pytest.fixture
def two_layers(tmp_path: Path) -> Path:
    """An ``.onnx`` file whose matrices all can be packed."""
    model = model_of(TWO_LAYERS, first=normal(64, 96), second=normal(48, 96), bias=normal(48))
    write_model(model, tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def test_an_onnx_file_keeps_its_input_and_output_names(two_layers: Path, tmp_path: Path) -> None:
    result = export(two_layers, tmp_path / "out", QUICK)
    assert (result.kind, result.report.packed_count, result.report.total_count) == ("graph", 2, 2)
    session = bcq.session(tmp_path / "out")
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert [value.name for value in session.get_outputs()] == ["y"]
    assert session.run(None, {"x": normal(3, 64)})[0].shape == (3, 48)


def test_the_folder_of_a_graph_holds_model_report_and_manifest(two_layers: Path, tmp_path: Path) -> None:
    result = export(two_layers, tmp_path / "out", QUICK)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "bcq_report.json", "report.html", "MANIFEST.json"}
    assert check_manifest(tmp_path / "out") == []
    report = json.loads((tmp_path / "out" / "bcq_report.json").read_text())
    assert [matrix["name"] for matrix in report["matrices"]] == ["first", "second"]
    assert report["options"]["bits"] == 2
    sizes = [(tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert result.model_bytes == sum(sizes)
    assert result.to_dict()["packed"] == 2


def test_the_same_export_twice_gives_the_same_bytes(two_layers: Path, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        export(two_layers, tmp_path / "out", QUICK)
        files = sorted((tmp_path / "out").iterdir())
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("level", [0, 1, 4])
def test_every_product_gets_the_accuracy_level_and_verify_knows_its_class(
    two_layers: Path, tmp_path: Path, level: int
) -> None:
    export(two_layers, tmp_path / "out", QUICK, accuracy_level=level)
    weights = ExportedWeights.open(tmp_path / "out")
    assert weights.int8 == (level == 4)
    result = verify(tmp_path / "out", two_layers)
    assert result.ok
    assert (result.relative > 1e-3) == (level == 4)  # 1e-2 there, at most 1e-4 else


def test_an_unknown_accuracy_level_is_refused(two_layers: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 5, expected one of 0, 1, 4") as caught:
        export(two_layers, tmp_path / "out", QUICK, accuracy_level=5)
    assert caught.value.code == "E202"


def test_less_than_nine_tenths_packed_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = model_of(HALF_ODD, first=normal(64, 64), grid=normal(2, 64, 64))  # a stack is no matrix
    write_model(model, tmp_path / "in.onnx")
    with pytest.raises(UnsupportedError, match="grid") as caught:
        export(tmp_path / "in.onnx", tmp_path / "out", QUICK)
    assert caught.value.code == "E402"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "in.onnx.data"]
    assert export(tmp_path / "in.onnx", tmp_path / "out", QUICK, allow_partial=True).report.packed_share < 0.9


def test_a_matrix_that_the_user_keeps_does_not_count_against_the_share(
    two_layers: Path, tmp_path: Path
) -> None:
    options = QuantizeOptions(bits=2, group_size=32, method="greedy", overrides=("second=keep",))
    report = export(two_layers, tmp_path / "out", options).report
    assert (report.packed_count, report.packed_share) == (1, 1.0)


def test_a_pattern_that_matches_no_matrix_of_a_graph_is_refused(two_layers: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(bits=2, group_size=32, method="greedy", overrides=("frist=4",))
    with pytest.raises(UsageError, match="frist") as caught:
        export(two_layers, tmp_path / "out", options)
    assert caught.value.code == "E201"
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_the_former_output_as_it_was(two_layers: Path, tmp_path: Path) -> None:
    export(two_layers, tmp_path / "out", QUICK)
    before = (tmp_path / "out" / "model.onnx.data").read_bytes()
    broken = normal(64, 96)
    broken[3, 5] = np.nan
    write_model(
        model_of(TWO_LAYERS, first=broken, second=normal(48, 96), bias=normal(48)), tmp_path / "nan.onnx"
    )
    with pytest.raises(InputError, match="first") as caught:
        export(tmp_path / "nan.onnx", tmp_path / "out", QUICK)
    assert caught.value.code == "E106"
    assert (tmp_path / "out" / "model.onnx.data").read_bytes() == before
    assert check_manifest(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["absent.onnx", "absent"])
def test_a_source_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=name) as caught:
        export(tmp_path / name, tmp_path / "out")
    assert caught.value.code == "E101"
    assert list(tmp_path.iterdir()) == []


def test_an_unsupported_architecture_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bart"
    folder.mkdir()
    config = {"architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys.modules["bcq.export"], "AtomicFolder", _never)
    with pytest.raises(UnsupportedError, match="BartForConditionalGeneration") as caught:
        export(folder, tmp_path / "out")
    assert caught.value.code == "E401"


def _never(*_: Any) -> AtomicFolder:
    raise AssertionError("work began")


def test_options_of_quantization_do_not_go_with_a_base(tmp_path: Path) -> None:
    base = bcq.quantize(save("bert", tmp_path / "model"), tmp_path / "base", bits=2, method="greedy")
    for source in (base, tmp_path / "base"):
        with pytest.raises(UsageError, match="quantized already") as caught:
            export(source, tmp_path / "out", QUICK)
        assert caught.value.code == "E203"


def test_a_foreign_output_folder_is_not_replaced(two_layers: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(BcqError, match="out") as caught:
        export(two_layers, tmp_path / "out", QUICK)
    assert caught.value.code == "E203"
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_missing_library_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save("bert", tmp_path / "model")
    monkeypatch.setenv("BCQ_LIBRARY", str(tmp_path / "absent.so"))
    monkeypatch.setattr(sys.modules["bcq.export"], "AtomicFolder", _never)
    with pytest.raises(ResourceError, match="absent"):
        export(source, tmp_path / "out")


def test_the_source_graph_is_not_changed(two_layers: Path, tmp_path: Path) -> None:
    before = two_layers.read_bytes()
    export(two_layers, tmp_path / "out", QUICK)
    assert two_layers.read_bytes() == before
    assert ir.load(two_layers).graph.initializers["first"].const_value is not None


@pytest.mark.parametrize("fault", ["dangling", "no operand", "alpha"])
def test_a_graph_that_is_no_valid_model_is_an_input_error(tmp_path: Path, fault: str) -> None:
    proto = ir.to_proto(model_of(TWO_LAYERS, first=normal(64, 96), second=normal(48, 96), bias=normal(48)))
    node = proto.graph.node[2 if fault == "alpha" else 0]
    if fault == "dangling":
        node.input[0] = "nowhere"
    elif fault == "no operand":
        del node.input[1:]
    else:
        node.attribute.append(onnx.helper.make_attribute("alpha", "half"))
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError) as caught:
        export(tmp_path / "in.onnx", tmp_path / "out", QUICK)
    assert caught.value.code == "E103"
    assert not (tmp_path / "out").exists()


def test_a_base_is_not_replaced_by_its_own_export(tmp_path: Path) -> None:
    base = bcq.quantize(save("bert", tmp_path / "model"), tmp_path / "base", bits=2, method="greedy")
    for source in (base, tmp_path / "base"):
        with pytest.raises(UsageError, match="would replace its source") as caught:
            export(source, tmp_path / "base")
        assert caught.value.code == "E203"
    assert (tmp_path / "base" / "model.safetensors").is_file()


def test_an_upper_case_suffix_is_an_onnx_file_too(two_layers: Path, tmp_path: Path) -> None:
    two_layers.rename(tmp_path / "IN.ONNX")
    assert export(tmp_path / "IN.ONNX", tmp_path / "out", QUICK).kind == "graph"


def test_an_export_of_an_export_is_called_that(two_layers: Path, tmp_path: Path) -> None:
    export(two_layers, tmp_path / "out", QUICK)
    with pytest.raises(UnsupportedError, match="an export already") as caught:
        export(tmp_path / "out", tmp_path / "again")
    assert caught.value.code == "E401"


def test_a_damaged_side_file_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save("bert", tmp_path / "model")
    (source / "generation_config.json").write_text("[]")
    monkeypatch.setattr(sys.modules["bcq.export"], "AtomicFolder", _never)
    with pytest.raises(InputError, match=str(source / "generation_config.json")) as caught:
        export(source, tmp_path / "out")
    assert caught.value.code == "E102"


def test_the_report_of_a_graph_has_the_error_of_each_matrix(two_layers: Path, tmp_path: Path) -> None:
    from bcq.solver import relative_error, solve

    export(two_layers, tmp_path / "out", QUICK)
    matrices = json.loads((tmp_path / "out" / "bcq_report.json").read_text())["matrices"]
    dense = np.ascontiguousarray(normal(64, 96).T)
    assert matrices[0]["relative_error"] == relative_error(dense, solve(dense, 2, 32, "greedy"))
    assert 0 < matrices[1]["relative_error"] < 1


def test_the_report_of_a_model_has_the_errors_of_its_base(tmp_path: Path) -> None:
    base = bcq.quantize(save("bert", tmp_path / "model"), tmp_path / "base", bits=2, method="greedy")
    export(base, tmp_path / "out")
    files = [tmp_path / folder / "bcq_report.json" for folder in ("base", "out")]
    solved, packed = ([m for m in json.loads(f.read_text())["matrices"] if m["bits"]] for f in files)
    errors = {matrix["name"]: matrix["relative_error"] for matrix in solved}
    assert packed
    assert all(matrix["relative_error"] == errors[matrix["name"]] for matrix in packed)
