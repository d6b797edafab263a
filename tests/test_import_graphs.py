# SPDX-License-Identifier: Apache-2.0
"""MatMulNBits graphs as BCQ graphs and back, run in ONNX Runtime itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import nbits_graphs as graphs
from bcq import contract, packing
from bcq.bcq import BcqWeight
from bcq.errors import BcqError, InputError
from bcq.files.exported import ExportedWeights
from bcq.files.integrity import check_integrity
from bcq.files.manifest import check_manifest
from bcq.fused import NOTE
from bcq.importers.fields import unpack_fields
from bcq.importers.run import NBITS, import_model
from bcq.parity import verify
from bcq.runtime import session
from foreign import Grid

HALF = 2.0**-11  # of a float16 result: half a unit in the last place


def the_weight(folder: Path) -> BcqWeight:
    """The one packed matrix of an export."""
    (packed,) = ExportedWeights.open(folder).packed.values()
    return packing.unpack(packed)


def exact(grid: Grid, feeds: graphs.Feeds, bias: bool) -> NDArray[np.float64]:
    """Relu(A W^T + bias) in float64."""
    result: NDArray[np.float64] = feeds["A"].astype(np.float64) @ grid.dense().T
    if bias:
        result += np.linspace(-1, 1, len(grid.levels)).astype(grid.scales.dtype).astype(np.float64)
    positive: NDArray[np.float64] = np.maximum(result, 0)
    return positive


def allowed(grid: Grid, feeds: graphs.Feeds, weight: BcqWeight, level: int) -> NDArray[np.float64]:
    """How far BcqMatMul may be from exact arithmetic (ops/README.md), output by output."""
    factors = np.abs(weight.alpha.astype(np.float64)).sum(axis=0)
    if weight.offset is not None:
        factors += np.abs(weight.offset.astype(np.float64))
    group_of = np.arange(weight.inputs) // weight.group_size
    size = np.abs(feeds["A"].astype(np.float64)) @ factors[:, group_of].T
    bound = 5e-4 if level != 1 else (weight.inputs + 2 * weight.bits + 2) * 2.0**-24
    both: NDArray[np.float64] = bound * size + 2.0**-24 * (size + 1)  # and the bias is added in float32
    return both


def onnx_allowed(grid: Grid, feeds: graphs.Feeds) -> NDArray[np.float64]:
    """How far float32 sums of K products may be from exact arithmetic, and of a bias of at most 1."""
    size = np.abs(feeds["A"].astype(np.float64)) @ np.abs(grid.dense()).T
    bound: NDArray[np.float64] = (grid.levels.shape[1] + 2) * 2.0**-24 * (size + 1)
    return bound


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("bits", "block", "inputs", "zeros", "inexact"),
    [
        (2, 32, 100, "absent", "refuse"),
        (4, 32, 100, "packed", "plane"),
        (4, 128, 64, "flat", "plane"),  # one block a row
        (4, 64, 256, "float", "plane"),
        (4, 16, 12, "absent", "refuse"),  # blocks of 16 that are whole rows
        (8, 64, 256, "absent", "refuse"),
    ],
)
def test_every_weight_is_equal_and_onnxruntime_computes_the_same(
    tmp_path: Path, bits: int, block: int, inputs: int, zeros: str, inexact: str, dtype: Any, level: int
) -> None:
    grid = Grid(24, inputs, bits, block, symmetric=zeros == "absent", dtype=np.float16)
    grid.scales = grid.scales.astype(dtype)
    proto = graphs.model(grid, zeros, bias=True, accuracy_level=level)
    source, feeds = graphs.save(proto, tmp_path / "in" / "model.onnx"), graphs.feeds(grid)
    assert import_model(source, tmp_path / "out", inexact=inexact).exact
    weight = the_weight(tmp_path / "out")
    assert np.array_equal(weight.dequantize().astype(np.float64), grid.dense())
    expected = exact(grid, feeds, bias=True)
    # The product is rounded to the type of A before the bias is added, and the sum again.
    rounding = 2 * HALF * (np.abs(expected) + 1) if dtype == np.float16 else 0.0
    ours = session(tmp_path / "out").run(None, feeds)[0]
    assert (np.abs(ours - expected) <= allowed(grid, feeds, weight, level) + rounding).all()
    theirs = graphs.run(source, feeds)
    assert (np.abs(theirs - expected) <= onnx_allowed(grid, feeds) + rounding).all()
    without = graphs.run(tmp_path / "out" / "model.onnx", feeds)  # the functions that the file carries
    assert (np.abs(without - expected) <= allowed(grid, feeds, weight, 1) + rounding).all()


def test_the_node_keeps_its_name_level_and_bias_and_nothing_else_changes(tmp_path: Path) -> None:
    grid = Grid(24, 64, symmetric=True)
    source = graphs.save(
        graphs.model(grid, "absent", bias=True, accuracy_level=4), tmp_path / "in/model.onnx"
    )
    import_model(source, tmp_path / "out")
    made = onnx.load(tmp_path / "out/model.onnx")
    onnx.checker.check_model(made)
    assert [node.op_type for node in made.graph.node] == ["BcqMatMul", "Add", "Relu"]
    node = made.graph.node[0]
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    assert node.name == "/h.0/fc/MatMul_Q4"
    assert attributes["accuracy_level"] == 4
    assert attributes["group_size"] == 32
    stored = {tensor.name for tensor in made.graph.initializer}
    assert {"B", "scales"}.isdisjoint(stored)
    assert {"h.0.fc.weight.codes", "bias"} <= stored
    assert made.graph.input == onnx.load(source).graph.input


def test_two_nodes_that_share_their_tensors_share_the_packed_matrix(tmp_path: Path) -> None:
    grid = Grid(64, 64, symmetric=True)
    proto = graphs.model(grid, "absent")
    second = onnx.NodeProto()
    second.CopyFrom(proto.graph.node[0])
    second.input[0], second.output[0], second.name = "X", "X2", "again"
    proto.graph.node.insert(1, second)
    proto.graph.node[2].input[0] = "X2"
    import_model(graphs.save(proto, tmp_path / "in/model.onnx"), tmp_path / "out")
    made = onnx.load(tmp_path / "out/model.onnx", load_external_data=False)
    assert len({node.input[1] for node in made.graph.node if node.op_type == "BcqMatMul"}) == 1


@pytest.mark.parametrize("bits", [4, 8])
def test_what_the_quantizer_of_onnxruntime_makes_of_float16_weights_is_exact(
    tmp_path: Path, bits: int
) -> None:
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    weights = graphs.normal(256, 96).astype(np.float16).astype(np.float32)
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        main (float[tokens, 256] A) => (float[tokens, 96] Y) { Y = MatMul (A, w) }""")
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    made = quantizer.MatMulNBitsQuantizer(
        proto, bits=bits, block_size=32, is_symmetric=True, accuracy_level=1
    )
    made.process()
    result = import_model(graphs.save(made.model.model, tmp_path / "in/model.onnx"), tmp_path / "out")
    # Its scales are the largest weight of a block, a float16 number, divided by a power of two.
    assert result.exact
    assert [matrix.name for matrix in result.matrices] == ["w"]
    feeds = {"A": graphs.normal(3, 256)}
    ours, theirs = (
        session(tmp_path / "out").run(None, feeds)[0],
        graphs.run(tmp_path / "in/model.onnx", feeds),
    )
    # Both are float32 sums of 256 products; each weight is below 5, so no sum of magnitudes exceeds 256 * 25.
    assert np.abs(ours - theirs).max() <= 2 * (256 + 2 * bits + 2) * 2.0**-24 * 256 * 25


def test_weights_outside_the_model_file_are_read(tmp_path: Path) -> None:
    grid = Grid(64, 256, symmetric=True)
    proto = graphs.model(grid, "absent")
    (tmp_path / "in").mkdir()
    onnx.save(
        proto, tmp_path / "in/model.onnx", save_as_external_data=True, location="w.data", size_threshold=0
    )
    import_model(tmp_path / "in/model.onnx", tmp_path / "out")
    assert np.array_equal(the_weight(tmp_path / "out").dequantize().astype(np.float64), grid.dense())


def test_an_imported_graph_is_verified_and_intact(tmp_path: Path) -> None:
    grid = Grid(64, 256, symmetric=True)
    import_model(graphs.save(graphs.model(grid, "absent"), tmp_path / "in/model.onnx"), tmp_path / "out")
    assert check_integrity(tmp_path / "out").ok
    grid.scales = grid.scales.astype(np.float32)
    import_model(graphs.save(graphs.model(grid, "absent"), tmp_path / "in/model.onnx"), tmp_path / "out")
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("zeros", ["packed", "absent", "float"])
@pytest.mark.parametrize("bias", [False, True])
def test_an_imported_graph_is_verified_against_its_original(tmp_path: Path, zeros: str, bias: bool) -> None:
    grid = Grid(64, 200, symmetric=zeros == "absent", dtype=np.float32)
    original = graphs.save(graphs.model(grid, zeros, bias), tmp_path / "in/model.onnx")
    import_model(original, tmp_path / "out", inexact="round")
    result = verify(tmp_path / "out", original)
    assert result.ok
    assert result.original is not None
    assert result.original["cosine"] > 0.999  # both have the same weights up to float16 scales


def test_an_original_with_other_weights_is_not_the_one(tmp_path: Path) -> None:
    for name, seed in (("in", 0), ("other", 1)):
        graphs.save(
            graphs.model(Grid(64, 256, symmetric=True, seed=seed), "absent"), tmp_path / name / "model.onnx"
        )
    import_model(tmp_path / "in/model.onnx", tmp_path / "out")
    with pytest.raises(InputError, match="resembles no matrix of the original"):
        verify(tmp_path / "out", tmp_path / "other/model.onnx")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("bits", "zeros", "inexact"), [(2, "absent", "refuse"), (4, "packed", "plane"),
                                                        (8, "absent", "refuse")])  # fmt: skip
def test_a_graph_goes_back_to_the_tensors_that_it_came_from(
    tmp_path: Path, bits: int, zeros: str, inexact: str, dtype: Any
) -> None:
    grid = Grid(24, 96, bits, 32, symmetric=zeros == "absent", dtype=np.float16)
    grid.scales = grid.scales.astype(dtype)
    source = graphs.save(graphs.model(grid, zeros, accuracy_level=1), tmp_path / "in/model.onnx")
    import_model(source, tmp_path / "out", inexact=inexact)
    result = import_model(tmp_path / "out", tmp_path / "back", target=NBITS)
    assert [matrix.bits for matrix in result.matrices] == [bits]
    made = onnx.load(tmp_path / "back/model.onnx")
    onnx.checker.check_model(made)
    (node,) = [node for node in made.graph.node if node.op_type == "MatMulNBits"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for name, (part, tensor) in zip(node.input[1:], graphs.tensors(grid, zeros).items(), strict=True):
        assert stored[name].dtype == tensor.dtype
        assert np.array_equal(stored[name], tensor), part
    assert contract.DOMAIN not in {entry.domain for entry in made.opset_import}
    assert not made.functions
    feeds = graphs.feeds(grid)
    assert np.array_equal(graphs.run(tmp_path / "back/model.onnx", feeds), graphs.run(source, feeds))


def packed_graph(tmp_path: Path, method: str, **options: Any) -> Path:
    """A dense graph with a look-up and two products, packed by the solver."""
    from bcq.export import export
    from bcq.matrices.plan import QuantizeOptions

    random = np.random.default_rng(0)
    names = {"table": (48, 64), "up": (64, 96), "down": (96, 64)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in names.items()}
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        main (int64[tokens] ids) => (float[tokens, 64] Y) {
            X = Gather <axis = 0> (table, ids)
            H = MatMul (X, up)
            R = Relu (H)
            Y = MatMul (R, down)
        }""")
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    export(graphs.save(proto, tmp_path / "dense/model.onnx"), tmp_path / "out", QuantizeOptions(
        group_size=32, method=method, **options))  # fmt: skip
    return tmp_path / "out"


def test_a_uniform_export_of_three_bits_goes_back_and_its_look_up_becomes_dense(tmp_path: Path) -> None:
    folder = packed_graph(tmp_path, "uniform", bits=3)
    result = import_model(folder, tmp_path / "back", target=NBITS)
    assert [matrix.bits for matrix in result.matrices] == [4, 4]  # 3 bits are stored as 4
    made = onnx.load(tmp_path / "back/model.onnx")
    assert [node.op_type for node in made.graph.node] == ["Gather", "MatMulNBits", "Relu", "MatMulNBits"]
    assert not any(entry.key == NOTE for node in made.graph.node for entry in node.metadata_props)
    feeds = {"ids": np.array([3, 0, -1], np.int64)}
    ours, theirs = session(folder).run(None, feeds)[0], graphs.run(tmp_path / "back/model.onnx", feeds)
    # Level 0: each product is within 1e-4 of exact as a relative RMS, on random data (ops/README.md).
    assert np.sqrt(np.square(ours - theirs).mean() / np.square(theirs).mean()) < 1e-4 * np.sqrt(2)
    dense = [row for row in result.rows if row.bits is None]
    assert [row.name for row in dense] == ["table"]
    assert "look-up" in dense[0].reason


def test_a_decoder_that_goes_back_keeps_what_genai_wants_but_the_library(tmp_path: Path) -> None:
    source = graphs.save(graphs.model(Grid(64, 256, symmetric=True), "absent"), tmp_path / "in/model.onnx")
    import_model(source, tmp_path / "out")
    session_options = {"custom_ops_library": "libbcq_ops.so", "provider_options": []}
    described = {"model": {"decoder": {"filename": "model.onnx", "session_options": session_options}}}
    (tmp_path / "out/genai_config.json").write_text(json.dumps(described))
    (tmp_path / "out/config.json").write_text('{"model_type": "gpt2", "quantization_config": {}}')
    (tmp_path / "out/tokenizer.json").write_text("{}")
    import_model(tmp_path / "out", tmp_path / "back", target=NBITS)
    made = json.loads((tmp_path / "back/genai_config.json").read_text())
    assert made["model"]["decoder"]["session_options"] == {"provider_options": []}
    assert json.loads((tmp_path / "back/config.json").read_text()) == {"model_type": "gpt2"}
    assert check_manifest(tmp_path / "back") == []
    assert (tmp_path / "back/tokenizer.json").is_file()


def test_free_alphas_do_not_go_back_and_the_first_node_is_named(tmp_path: Path) -> None:
    folder = packed_graph(tmp_path, "multistart", bits=2)
    with pytest.raises(BcqError, match=r"BcqMatMul '.*' is no integer grid: output 0, group 0") as caught:
        import_model(folder, tmp_path / "back", target=NBITS)
    assert caught.value.code == "E403"
    assert not (tmp_path / "back").exists()


def grid_values(proto: onnx.ModelProto, node: onnx.NodeProto, bits: int) -> NDArray[np.float64]:
    """What a MatMulNBits node's tensors stand for, ``[N, padded K]``."""
    levels, scales, zeros = (numpy_helper.to_array(tensor_of(proto, name)) for name in node.input[1:4])
    rows, blocks, held = levels.shape
    values = unpack_fields(levels, bits, 8 * held // bits).astype(np.float64)
    middle = unpack_fields(zeros.reshape(rows, -1), bits, blocks)
    grid: NDArray[np.float64] = (values - middle[..., None]) * scales.reshape(rows, blocks, 1)
    return grid.reshape(rows, -1)


@pytest.mark.parametrize("bits", [4, 8])
def test_free_alphas_become_the_nearest_grid_when_asked_and_the_error_is_stated(
    tmp_path: Path, bits: int
) -> None:
    folder = packed_graph(tmp_path, "multistart", bits=3)
    result = import_model(folder, tmp_path / "twin", target=NBITS, inexact="round", bits=bits)
    assert not result.exact
    stated = {matrix.name: matrix.relative_error for matrix in result.matrices}
    packed = ExportedWeights.open(folder).packed
    proto = onnx.load(tmp_path / "twin/model.onnx")
    nodes = [node for node in proto.graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == len(stated) == 2
    for node in nodes:
        name = node.input[1].removesuffix(".levels")
        weight, twin = packing.unpack(packed[name]).dequantize(), grid_values(proto, node, bits)
        found = np.square(twin[:, : weight.shape[1]] - weight).sum() / np.square(weight).sum()
        assert stated[name] == pytest.approx(found, rel=1e-3)  # one in float32, one in float64
        # Errors are even within half a step, a step about 2 / (2^bits - 1) of the largest weight, which is at
        # most 3 times the root mean square here: 3 * 2 / sqrt(12) / (2^bits - 1).
        assert np.sqrt(found) < 1.8 / (2**bits - 1)
    assert check_manifest(tmp_path / "twin") == []


def test_the_bits_of_a_twin_are_four_or_eight_and_only_of_a_rounded_one(tmp_path: Path) -> None:
    folder = packed_graph(tmp_path, "multistart", bits=2)
    for bits, inexact in ((3, "round"), (4, "refuse")):
        with pytest.raises(BcqError, match="expected 4 or 8, with --inexact round"):
            import_model(folder, tmp_path / "twin", target=NBITS, inexact=inexact, bits=bits)


Change = Callable[[onnx.ModelProto], object]


def tensor_of(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (found,) = [tensor for tensor in proto.graph.initializer if tensor.name == name]
    assert isinstance(found, onnx.TensorProto)
    return found


def with_tensor(name: str, make: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        tensor = tensor_of(proto, name)
        tensor.CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(make(numpy_helper.to_array(tensor))), name)
        )

    return change


def with_attribute(name: str, value: Any) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        node = proto.graph.node[0]
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        if value is not None:
            node.attribute.append(helper.make_attribute(name, value))

    return change


def with_input(place: int, name: str) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        inputs = [*proto.graph.node[0].input, *[""] * 6]
        inputs[place] = name
        del proto.graph.node[0].input[:]
        proto.graph.node[0].input.extend(inputs[:6])

    return change


def fed(proto: onnx.ModelProto) -> None:
    tensor = tensor_of(proto, "B")
    info = helper.make_tensor_value_info("B", tensor.data_type, list(tensor.dims))
    proto.graph.initializer.remove(tensor)
    proto.graph.input.append(info)


def overridable(proto: onnx.ModelProto) -> None:
    tensor = tensor_of(proto, "scales")
    proto.graph.input.append(helper.make_tensor_value_info("scales", tensor.data_type, list(tensor.dims)))


def in_a_branch(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    inner, relu = graph.node[0], graph.node[1]
    body = helper.make_graph([inner], "then", [], [helper.make_tensor_value_info("X", 1, None)])
    other = helper.make_graph(
        [helper.make_node("Identity", ["bias2"], ["Z"])],
        "else",
        [],
        [helper.make_tensor_value_info("Z", 1, None)],
    )
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 24), np.float32), "bias2"))
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    choice = helper.make_node("If", ["yes"], ["XX"], then_branch=body, else_branch=other)
    relu.input[0] = "XX"
    nodes = [choice, relu]
    del graph.node[:]
    graph.node.extend(nodes)


def dense(proto: onnx.ModelProto) -> None:
    del proto.graph.node[0]
    proto.graph.node[0].input[0] = "A"


ATTACKS: dict[str, tuple[Change, str, str]] = {
    "bits of five": (with_attribute("bits", 5), "E401", "it has 5 bits"),
    "bits of zero": (with_attribute("bits", 0), "E109", "attribute bits: got 0"),
    "bits as text": (with_attribute("bits", "4"), "E109", "attribute bits"),
    "other bits": (with_attribute("bits", 8), "E109", "B: got uint8"),
    "blocks of sixteen": (with_attribute("block_size", 16), "E401", "expected a multiple of 32"),
    "blocks of eight": (with_attribute("block_size", 8), "E109", "attribute block_size: got 8"),
    "blocks of forty-eight": (with_attribute("block_size", 48), "E109", "block_size 48"),
    "no block size": (with_attribute("block_size", None), "E109", "attribute block_size: got none"),
    "another block size": (with_attribute("block_size", 64), "E109", "B: got uint8"),
    "no inputs": (with_attribute("K", 0), "E109", "attribute K: got 0"),
    "too many inputs": (with_attribute("K", 2**40), "E109", "attribute K: got"),
    "other outputs": (with_attribute("N", 25), "E109", "B: got uint8[24, 3, 16], expected uint8[25, 3, 16]"),
    "an unknown level": (with_attribute("accuracy_level", 9), "E109", "accuracy_level 9"),
    "prepacked": (with_attribute("weight_prepacked", 1), "E401", "weight_prepacked"),
    "levels of another type": (with_tensor("B", lambda b: b.astype(np.int8)), "E109", "B: got int8"),
    "levels cut": (with_tensor("B", lambda b: b[:-1]), "E109", "B: got"),
    "levels of another rank": (with_tensor("B", lambda b: b.reshape(24, -1)), "E109", "B: got"),
    "scales cut": (with_tensor("scales", lambda s: s[:, :-1]), "E109", "scales: got"),
    "scales of double": (with_tensor("scales", lambda s: s.astype(np.float64)), "E401", "scales are double"),
    "scales of NaN": (with_tensor("scales", lambda s: s * np.float32(np.nan)), "E106", "NaN"),
    "zero-points cut": (with_tensor("zero_points", lambda z: z[:, :-1]), "E109", "zero_points: got"),
    "zero-points of another type": (with_tensor("zero_points", lambda z: z.astype(np.float16)), "E109",
                                    "zero_points: got float16"),
    "an order of inputs": (with_input(4, "scales"), "E401", "g_idx"),
    "no levels": (with_input(1, ""), "E109", "B: got nothing"),
    "levels that are fed": (fed, "E401", "is no constant"),
    "scales that may be fed": (overridable, "E401", "'scales') is no constant"),
    "a node in a branch": (in_a_branch, "E401", "subgraph"),
    "no node at all": (dense, "E401", "no MatMulNBits"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_bad_node_is_refused_by_name_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    change, code, text = ATTACKS[name]
    grid = Grid(24, 96, symmetric=True, dtype=np.float32)
    proto = graphs.model(grid, "packed")
    change(proto)
    source = graphs.save(proto, tmp_path / "in/model.onnx")
    with pytest.raises(BcqError) as caught:
        import_model(source, tmp_path / "out", inexact="round")
    assert caught.value.code == code, caught.value
    assert text in caught.value.message
    assert "\n" not in caught.value.message
    assert code != "E109" or "/h.0/fc/MatMul_Q4" in caught.value.message
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_a_file_that_is_cut_short_or_missing_is_told(tmp_path: Path) -> None:
    source = graphs.save(graphs.model(Grid(24, 96, symmetric=True)), tmp_path / "in/model.onnx")
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(BcqError, match="cut short"):
        import_model(source, tmp_path / "out")
    with pytest.raises(BcqError, match="does not exist"):
        import_model(tmp_path / "no.onnx", tmp_path / "out")
    with pytest.raises(BcqError, match="does not exist"):
        import_model(tmp_path / "nothing", tmp_path / "out", target=NBITS)


def test_a_graph_without_bcq_nodes_does_not_go_back(tmp_path: Path) -> None:
    source = graphs.save(graphs.model(Grid(24, 96, symmetric=True)), tmp_path / "in/model.onnx")
    with pytest.raises(BcqError, match="no BCQ operator"):
        import_model(source, tmp_path / "out", target=NBITS)


def test_codes_that_were_changed_do_not_go_back(tmp_path: Path) -> None:
    grid = Grid(64, 256, symmetric=True)
    import_model(graphs.save(graphs.model(grid, "absent"), tmp_path / "in/model.onnx"), tmp_path / "out")
    data = tmp_path / "out/model.onnx.data"
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)
    with pytest.raises(BcqError, match="do not have the hash") as caught:
        import_model(tmp_path / "out", tmp_path / "back", target=NBITS)
    assert caught.value.code == "E109"


def test_options_that_do_not_fit_the_source_are_usage_errors(tmp_path: Path) -> None:
    source = graphs.save(graphs.model(Grid(24, 96, symmetric=True)), tmp_path / "in/model.onnx")
    for settings in ({"kind": "gptq"}, {"kind": "odd"}, {"bits": 3}, {"target": "gguf"}, {"inexact": "odd"}):
        with pytest.raises(BcqError) as caught:
            import_model(source, tmp_path / "out", **settings)
        assert caught.value.code == "E202", settings
    with pytest.raises(BcqError, match=r"is no \.onnx file"):
        import_model(tmp_path / "in", tmp_path / "out", kind=NBITS)
    with pytest.raises(BcqError, match="would replace its source"):
        import_model(source, tmp_path / "in")
