# SPDX-License-Identifier: Apache-2.0
"""One export that serves 2, 3 and 4 bits: how it is stored, chosen, checked, and what does not go with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq import contract, packing
from bcq.calibration.settings import CalibrationOptions
from bcq.cli import main
from bcq.errors import BcqError, InputError, UsageError
from bcq.export import export
from bcq.files.base import METADATA_KEY, QuantizedBase
from bcq.files.checkpoint import Checkpoint
from bcq.files.integrity import check_integrity
from bcq.matrices.plan import QuantizeOptions
from bcq.precisions import further
from bcq.quantize import quantize
from bcq.solver import relative_error
from tiny_adapters import task
from tiny_models import save

NESTED = QuantizeOptions(bits=4, group_size=32, also_bits=(2, 3), overrides=["wpe*=2"])
FC = "transformer.h.0.mlp.c_fc.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its base of three precisions, and the export of that."""
    root = tmp_path_factory.mktemp("made")
    save("gpt2", root / "model", n_layer=1)
    export(quantize(root / "model", root / "base", NESTED), root / "out")
    return root


def test_a_base_holds_codes_once_and_factors_for_each_precision(made: Path) -> None:
    base = QuantizedBase.open(made / "base")
    assert base.further_bits() == [2, 3]
    assert base.config["quantization_config"]["also_bits"] == [2, 3]
    codes = base.packed(FC).codes
    for bits in (2, 3):
        weight = base.packed(FC, bits)
        assert (weight.bits, weight.planes, weight.format_version) == (bits, 4, 2)
        assert np.array_equal(weight.codes, codes)
    assert base.packed(FC).format_version == contract.FORMAT_VERSION
    assert json.loads(base.checkpoint.metadata[METADATA_KEY])["format_version"] == 2


def test_the_report_has_the_error_of_each_precision(made: Path) -> None:
    rows = json.loads((made / "base" / "bcq_report.json").read_text())["matrices"]
    row = next(row for row in rows if row["stored"] == FC)
    dense = Checkpoint.open(made / "model").read(FC).T
    base = QuantizedBase.open(made / "base")
    for entry in row["also"]:
        solved = packing.unpack(base.packed(FC, entry["bits"]))
        assert entry["group_size"] == solved.group_size
        assert entry["relative_error"] == relative_error(dense, solved)
    errors = [entry["relative_error"] for entry in row["also"]] + [row["relative_error"]]
    assert errors == sorted(errors, reverse=True)


def test_a_matrix_of_fewer_bits_is_the_same_at_every_higher_precision(made: Path) -> None:
    base = QuantizedBase.open(made / "base")
    name = "transformer.wpe.weight"
    assert base.matrices[name].also == ()
    assert base.packed(name, 3).bits == base.packed(name).bits == 2


def test_a_base_of_one_precision_is_what_it_always_was(made: Path, tmp_path: Path) -> None:
    base = quantize(made / "model", tmp_path / "base", QuantizeOptions(bits=1, method="greedy"))
    described = json.loads(base.checkpoint.metadata[METADATA_KEY])
    assert described["format_version"] == 1
    assert all("also" not in matrix for matrix in described["matrices"])
    assert "also" not in (tmp_path / "base" / "config.json").read_text()
    assert "also" not in (tmp_path / "base" / "bcq_report.json").read_text()


def test_transformers_loads_the_highest_precision_and_saves_a_base_of_it(made: Path, tmp_path: Path) -> None:
    import transformers

    import bcq.nn

    assert bcq.nn
    opened: Any = transformers.AutoModelForCausalLM.from_pretrained(made / "base", output_loading_info=True)
    model, told = opened
    assert not told["unexpected_keys"]
    model.save_pretrained(tmp_path / "saved")
    saved = QuantizedBase.open(tmp_path / "saved")
    assert saved.further_bits() == []
    assert saved.packed(FC).code_hash() == QuantizedBase.open(made / "base").packed(FC).code_hash()


def places(graph: Path) -> dict[str, tuple[str, str]]:
    """Where the large tensors of a graph lie."""
    found = {}
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found[tensor.name] = entries["location"], entries["offset"]
    return found


def test_all_graphs_name_the_same_codes_of_one_data_file(made: Path) -> None:
    graphs = [places(made / "out" / name) for name in ("model.onnx", "model-3bit.onnx", "model-2bit.onnx")]
    codes = {name for name in graphs[0] if name.endswith(".codes")}
    assert FC + ".codes" in codes
    for graph in graphs[1:]:
        assert {name: graph[name] for name in codes} == {name: graphs[0][name] for name in codes}
    assert {location for graph in graphs for location, _ in graph.values()} == {"model.onnx.data"}


@pytest.mark.parametrize("bits", [None, 4, 3, 2])
def test_each_precision_is_what_pytorch_computes_with_its_weights(made: Path, bits: int | None) -> None:
    result = bcq.verify(made / "out", bits=bits, steps=3)
    assert result.ok
    assert result.tokens_equal


@pytest.mark.parametrize("bits", [3, 2])
def test_the_file_of_each_precision_runs_without_the_library_too(made: Path, bits: int) -> None:
    tokens = list(range(2, 14))
    runs = []
    for with_library in (True, False):
        model = bcq.load(made / "out", with_library=with_library, bits=bits)
        row = np.array([tokens])
        logits, _ = model.logits(row, model.empty_cache(), np.ones_like(row))
        runs.append(logits.astype(np.float64))
    # 4 products and the head, each within 1e-4 (ops/README.md): sqrt(5) 1e-4, twice for what layers add.
    assert np.linalg.norm(runs[0] - runs[1]) <= 5e-4 * np.linalg.norm(runs[1])


def test_precisions_differ_and_are_chosen_when_the_model_is_opened(made: Path) -> None:
    generated = {}
    for bits in (2, 3, 4):
        model = bcq.load(made / "out", bits=bits)
        row = np.array([[5, 6, 7]])
        generated[bits] = model.logits(row, model.empty_cache(), np.ones_like(row))[0].tobytes()
    assert len(set(generated.values())) == 3
    default = bcq.load(made / "out")
    row = np.array([[5, 6, 7]])
    assert default.logits(row, default.empty_cache(), np.ones_like(row))[0].tobytes() == generated[4]


@pytest.mark.parametrize("bits", [1, 5, 0, -2])
def test_a_precision_that_is_not_there_is_refused_with_those_that_are(made: Path, bits: int) -> None:
    for attempt in (bcq.session, bcq.load, bcq.verify):
        with pytest.raises(UsageError, match="serves 4, 3, 2") as caught:
            attempt(made / "out", bits=bits)
        assert caught.value.code == "E202"


def test_a_single_file_has_the_precision_that_it_has(made: Path) -> None:
    bcq.session(made / "out" / "model-2bit.onnx")
    with pytest.raises(UsageError, match="expected the folder of an export"):
        bcq.session(made / "out" / "model-2bit.onnx", bits=2)


def test_the_commands_choose_a_precision(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(made / "out")
    assert main(["run", out, "--tokens", "5,6,7", "-n", "4", "--bits", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["continuation"]) == 4
    assert main(["verify", out, "--bits", "3", "--steps", "2", "--quiet"]) == 0
    assert main(["verify", out, "--bits", "7"]) == 2
    assert "serves 4, 3, 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model-2bit.onnx", "model.onnx.data"])
def test_integrity_covers_the_graphs_of_all_precisions(made: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    assert check_integrity(tmp_path / "out").ok
    content = bytearray((tmp_path / "out" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "out" / name).write_bytes(content)
    assert not check_integrity(tmp_path / "out").ok
    shutil.copy(made / "out" / name, tmp_path / "out" / name)
    shutil.copy(made / "out" / "model-2bit.onnx", tmp_path / "out" / "model-1bit.onnx")
    assert check_integrity(tmp_path / "out").faults == ["model-1bit.onnx is not listed in MANIFEST.json."]


class StopsAt:
    """Progress that ends a run after some matrices."""

    def __init__(self, left: int) -> None:
        self.left = left

    def start(self, what: str, total: int) -> None: ...

    def step(self, name: str, detail: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def done(self) -> None: ...


def test_a_stopped_run_goes_on_with_the_same_bytes(made: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantize(made / "model", tmp_path / "base", NESTED, progress=StopsAt(3))
    kept = len(list((tmp_path / ".base.resume").glob("*.safetensors")))
    assert kept >= 3
    quantize(made / "model", tmp_path / "base", NESTED, resume=True)
    for file in sorted((made / "base").iterdir()):
        if file.name != "MANIFEST.json":
            assert (tmp_path / "base" / file.name).read_bytes() == file.read_bytes(), file.name


def refused(code: str, attempt: Any) -> str:
    with pytest.raises(BcqError) as caught:
        attempt()
    assert caught.value.code == code
    return caught.value.message


def test_what_does_not_go_with_several_precisions_is_said_before_any_work(made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b c\n")
    calibration = CalibrationOptions(tmp_path / "text.txt", refine=1)
    model, base, out = made / "model", made / "base", tmp_path / "out"
    assert "--refine" in refused("E203", lambda: quantize(model, out, NESTED, calibration=calibration))
    tasks = [task(QuantizedBase.open(base), "same", 1)]
    assert "adapters" in refused("E203", lambda: export(base, out, adapters=tasks))
    graph = made / "out" / "model.onnx"
    assert "the graph" in refused("E203", lambda: export(graph, out, NESTED))
    assert main(["quantize", str(model), "-o", str(out), "--target-bpw", "3", "--also-bits", "2"]) == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3, "also_bits": [3]}, "got 3, expected 1 to 2"),
        ({"bits": 4, "also_bits": [0]}, "got 0"),
        ({"bits": 4, "also_bits": [True]}, "got True"),
        ({"bits": 4, "also_bits": "2,3"}, "expected a list"),
        ({"bits": 4, "also_bits": 2}, "expected a list"),
        ({"bits": 4, "also_bits": [2], "method": "greedy"}, "--method greedy"),
    ],
)
def test_wrong_further_precisions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QuantizeOptions(**options)


def test_further_precisions_come_in_order_and_once() -> None:
    assert QuantizeOptions(bits=4, also_bits=[3, 2, 3]).also_bits == (2, 3)
    assert further.parse("2, 3") == (2, 3)
    for text in ("", "a", "2;3", "2,,3", "99999"):
        with pytest.raises(UsageError, match="expected numbers"):
            further.parse(text)


@pytest.mark.parametrize("inputs", [256, 384, 768, 1024, 4096, 14336])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("offset", [False, True])
def test_factors_of_further_precisions_take_less_than_a_tenth(
    inputs: int, group_size: int, offset: bool
) -> None:
    def bits_of(planes: int, size: int) -> float:
        return (planes + offset) * 16 * -(-inputs // size) / inputs

    sizes = further.sizes(4, group_size, offset, inputs, (2, 3))
    assert [bits for bits, _ in sizes] == [2, 3]
    assert sizes[1][1] == inputs
    alone = 4 + bits_of(4, group_size)
    # At K = 256 one group a row at 2 and 3 bits takes (2 + 3 + 2) 16 / 256 = 0.44, of 4.6 to 6.5.
    assert sum(bits_of(*size) for size in sizes) <= further.MOST_MORE * alone or sizes[0][1] == inputs
    assert sizes == further.sizes(4, group_size, offset, inputs, (2, 3))
    assert further.sizes(2, group_size, offset, inputs, (2, 3)) == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda matrix: matrix.update(also=[[3, 64], [2, 64]]), "further precisions"),
        (lambda matrix: matrix.update(also=[[4, 64]]), "further precisions"),
        (lambda matrix: matrix.update(also=[[2, 33], [3, 64]]), "group_size"),
        (lambda matrix: matrix.update(also=[[2, 64.0], [3, 64]]), "also is"),
        (lambda matrix: matrix.update(also={"2": 64}), "also is"),
        (lambda matrix: matrix.update(also=[[1, 64], [2, 64]]), "1bit"),
    ],
)
def test_a_description_of_precisions_that_cannot_be_is_refused(
    made: Path, tmp_path: Path, change: Any, fault: str
) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(made / "base", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    described = json.loads(QuantizedBase.open(made / "base").checkpoint.metadata[METADATA_KEY])
    change(next(matrix for matrix in described["matrices"] if matrix["stored"] == FC))
    save_file(load_file(file), file, {METADATA_KEY: json.dumps(described)})
    with pytest.raises(InputError, match=fault):
        QuantizedBase.open(tmp_path / "base")
