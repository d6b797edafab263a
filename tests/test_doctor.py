# SPDX-License-Identifier: Apache-2.0
"""The doctor tells versions, library, CPU and chosen kernels; only a model can make it fail."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from bcq import cli, contract, doctor
from bcq.errors import InputError
from bcq.kernels.core import Core
from nodes import one_node, random_weight


def test_the_facts_name_the_library_the_cpu_and_a_kernel_for_each_number_of_bits() -> None:
    facts = doctor.facts()
    assert Path(facts["library"]["path"]).is_file()
    assert facts["library"]["error"] is None
    assert facts["cpu"]["used"] == Core.load().isa_name(Core.load().flags())
    built = facts["kernels"]["built"]
    assert set(facts["kernels"]["chosen"].values()) <= {*built["BcqMatMul"], *built["BcqGather"]}
    assert len(facts["kernels"]["chosen"]) == 9
    assert facts["memory"]["total_mb"] is None or facts["memory"]["total_mb"] > 0
    assert facts["versions"]["onnxruntime"]


def test_the_facts_are_plain_json() -> None:
    facts = doctor.facts()
    assert json.loads(json.dumps(facts)) == facts


def test_a_missing_library_is_a_fact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BCQ_LIBRARY", str(tmp_path / "none.so"))
    facts = doctor.facts()
    assert facts["library"]["path"] is None
    assert "E603" in facts["library"]["error"]
    assert facts["kernels"] == {}
    assert facts["weights"] is None


def test_a_wrong_bcq_isa_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCQ_ISA", "avx9000")
    assert "BCQ_ISA: got 'avx9000', expected one of" in doctor.facts()["cpu"]["error"]


def two_nodes(folder: Path) -> Path:
    """A model of a gather and a product, under the name that an export has."""
    model = one_node(contract.MATMUL, random_weight(32, 64, 3, 32), change={"accuracy_level": 1})
    gather = onnx.helper.make_node(
        "BcqGather", ["rows", *model.graph.node[0].input[1:]], ["E"], domain=contract.DOMAIN
    )
    gather.attribute.extend(a for a in model.graph.node[0].attribute if a.name in contract.GATHER.attributes)
    model.graph.node.append(gather)
    model.graph.input.append(onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["i"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("E", onnx.TensorProto.FLOAT, None))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def test_the_nodes_of_a_model_are_listed_with_their_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BCQ_WEIGHTS", raising=False)
    core = Core.load()
    facts = doctor.facts(two_nodes(tmp_path))
    sizes = {"bits": 3, "K": 64, "N": 32, "group_size": 32}
    assert facts["model"] == str(tmp_path)
    product, gather = facts["nodes"]
    kernel = core.select_matmul(**sizes, accuracy_level=1, flags=core.flags())
    held = "resident" if core.has_own_order(kernel) else "mapped"
    rest = {**sizes, "accuracy_level": 1, "kernel": kernel, "weights": held}
    assert product == {"name": "the_node", "op": "BcqMatMul", **rest}
    kernel = core.select_gather(flags=core.flags())
    rest = {**sizes, "accuracy_level": None, "kernel": kernel, "weights": "mapped"}
    assert gather == {"name": "", "op": "BcqGather", **rest}


def test_the_kernels_of_nodes_follow_bcq_isa(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BCQ_ISA", "scalar")
    assert {node["kernel"] for node in doctor.facts(two_nodes(tmp_path))["nodes"]} == {"scalar"}


def test_a_model_that_the_library_refuses_is_refused(tmp_path: Path) -> None:
    model = one_node(contract.MATMUL, random_weight(32, 64, 3, 32), change={"K": 2**62})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="E109"):
        doctor.facts(tmp_path)
    with pytest.raises(InputError, match="E101"):
        doctor.facts(tmp_path / "none")


def test_the_command_prints_one_line_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(two_nodes(tmp_path))]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "the_node" in line]
    assert line.split("|")[2].strip() == "BcqMatMul"
    assert cli.main(["doctor", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["nodes"]) == 2


def test_how_weights_are_held_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = two_nodes(tmp_path)
    names = [row.name for row in Core.load().kernels("BcqMatMul")]
    own = [name for name in names if Core.load().has_own_order(name)]
    monkeypatch.delenv("BCQ_WEIGHTS", raising=False)
    weights = doctor.facts()["weights"]
    room = weights.pop("room_mb")
    assert room is None or room > 0
    assert weights == {"BCQ_WEIGHTS": None, "error": None, "resident": own}
    for held, resident in (("resident", names), ("mapped", [])):
        monkeypatch.setenv("BCQ_WEIGHTS", held)
        facts = doctor.facts(model)
        del facts["weights"]["room_mb"]
        assert facts["weights"] == {"BCQ_WEIGHTS": held, "error": None, "resident": resident}
        # A gather reads the order of the disk, so it never has a copy.
        assert [node["weights"] for node in facts["nodes"]] == [held, "mapped"]


def test_nodes_stay_mapped_where_the_room_for_copies_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BCQ_WEIGHTS", raising=False)
    monkeypatch.setattr(Core, "has_own_order", lambda core, kernel: True)
    code_bytes = (32 // 16) * (64 // 32) * 3 * 64  # tiles, chunks, planes, bytes of a line
    for room, held in ((code_bytes, "resident"), (code_bytes - 1, "mapped")):
        monkeypatch.setattr(Core, "memory_for_copies", lambda core, room=room: room)
        assert doctor.facts(two_nodes(tmp_path))["nodes"][0]["weights"] == held


@pytest.mark.parametrize(
    ("variable", "row"), [("BCQ_ISA", "cpu"), ("BCQ_WEIGHTS", "weights"), ("BCQ_PROFILE", "profile")]
)
def test_a_wrong_variable_is_shown_in_its_own_row_with_and_without_a_model(
    variable: str,
    row: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, "nonsense")
    for arguments in (["doctor"], ["doctor", str(two_nodes(tmp_path))]):
        assert cli.main([*arguments, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts[row]["error"].startswith(f"{variable}: got 'nonsense', expected ")
        others = [facts[name]["error"] for name in ("cpu", "weights", "profile") if name != row]
        assert others == [None, None]
        assert facts.get("nodes") is None
    assert cli.main(["doctor", str(tmp_path)]) == 0
    assert f"{row} error" in capsys.readouterr().out
