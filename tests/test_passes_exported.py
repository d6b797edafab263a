# SPDX-License-Identifier: Apache-2.0
"""Models as torch's own exporter writes them: packed whole, and equal to their dequantized twins."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bcq import passes
from bcq.bcq import Float32
from bcq.errors import BcqError
from bcq.exporting.write import write_model
from bcq.frontends import onnx_file
from bcq.matrices.plan import QuantizeOptions
from bcq.packing import PackedWeight, unpack
from bcq.passes import Left, MatrixRef, SolveOnTheFly
from bcq.passes.find_matrices import find_matrices
from bcq.passes.work import Work
from bcq.progress import SILENT
from graphs import Feeds, bcq_nodes, run_without_library

torch = pytest.importorskip("torch", reason="the exporter under test is torch's")
transformers = pytest.importorskip("transformers", reason="the exported models are transformers'")

OPTIONS = QuantizeOptions(bits=4, group_size=32, method="greedy")
# Twin and packed model compute the same float32 formula in another order. Activations after a LayerNorm have
# the size of 1 and K <= 256, so one product differs by at most 256 * 4 * sqrt(256) * 2^-24 = 1e-3; a wrong
# plane would show as 0.1 and more.
TOLERANCE = 1e-3


# name: configuration class, arguments, distinct matrices: embeddings, those of one layer, a head of its own.
# A tied head is its embedding; BERT's pooler is no part of the hidden states.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "GPT-2": ("GPT2Config", {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64}, 2 + 4),
    "OPT": (
        "OPTConfig",
        {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "ffn_dim": 128,
         "max_position_embeddings": 64, "word_embed_proj_dim": 64},
        2 + 6,
    ),
    "Llama": (
        "LlamaConfig",
        {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 128, "max_position_embeddings": 64},
        1 + 7 + 1,
    ),
    "BERT": (
        "BertConfig",
        {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128,
         "max_position_embeddings": 64, "type_vocab_size": 16},
        3 + 6,
    ),
}  # fmt: skip


class Wrapped(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch comes from importorskip
    """Token ids in, logits or hidden states out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any) -> Any:
        return self.model(input_ids=input_ids, return_dict=False)[0]


class Recording(SolveOnTheFly):
    """Solves, and remembers what each matrix became."""

    def __init__(self) -> None:
        super().__init__(OPTIONS)
        self.dense: dict[str, Float32] = {}

    def pack(self, matrix: MatrixRef) -> PackedWeight | Left:
        packed = super().pack(matrix)
        assert isinstance(packed, PackedWeight)
        self.dense[self.identity(matrix)] = unpack(packed).dequantize()
        return packed


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An ``.onnx`` file by ``torch.onnx.export`` with its own optimizations, and its number of matrices."""
    config_class, arguments, matrices = MODELS[request.param]
    path = tmp_path_factory.mktemp("exported") / "plain.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(
            **arguments, vocab_size=100, bos_token_id=0, eos_token_id=0, use_cache=False
        )
        auto = transformers.AutoModel if request.param == "BERT" else transformers.AutoModelForCausalLM
        ids = torch.ones(2, 5, dtype=torch.int64)
        dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(
            Wrapped(auto.from_config(config).eval()), (ids,), path, dynamo=True, dynamic_shapes=dynamic,
            input_names=["input_ids"], output_names=["result"], external_data=True, verbose=False,
        )  # fmt: skip
    return path, matrices


def dequantized_twin(path: Path, source: Recording) -> ir.Model:
    """The same graph, still dense, with every matrix replaced by what its packed form decodes to."""
    twin = onnx_file.load(path)
    work = Work(source, SILENT)
    find_matrices(twin, work)
    values = {id(value.const_value): value for value in twin.graph.initializers.values()}
    for matrix in work.matrices:
        dense = source.dense[source.identity(matrix.ref)]
        stored = np.ascontiguousarray(dense.T if matrix.ref.transposed else dense)
        values[id(matrix.ref.tensor)].const_value = ir.Tensor(stored)
    return twin


def test_an_exported_model_is_packed_whole_and_equals_its_dequantized_twin(
    exported: tuple[Path, int], tmp_path: Path
) -> None:
    path, matrices = exported
    model = onnx_file.load(path)
    source = Recording()
    report = passes.run(model, source)
    assert (report.packed_count, report.total_count) == (matrices, matrices)
    assert report.packed_share == 1.0
    assert [value.name for value in model.graph.inputs] == ["input_ids"]
    assert [value.name for value in model.graph.outputs] == ["result"]
    write_model(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    feeds: Feeds = {"input_ids": np.random.default_rng(0).integers(0, 100, (2, 7))}
    (got,) = run_without_library(tmp_path / "model.onnx", feeds)
    write_model(dequantized_twin(path, source), tmp_path / "twin.onnx")
    (expected,) = run_without_library(tmp_path / "twin.onnx", feeds)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
    (original,) = run_without_library(path, feeds)
    assert np.abs(original - expected).max() > 10 * TOLERANCE  # quantization shows, so the twin is a real one


def test_matrices_have_the_names_of_the_modules(exported: tuple[Path, int]) -> None:
    report = passes.run(onnx_file.load(exported[0]), Recording())
    assert all(record.name.endswith(".weight") for record in report.matrices)
    assert not [record.name for record in report.matrices if "val_" in record.name or "node_" in record.name]


def test_the_exporters_notes_with_paths_of_its_machine_are_gone(exported: tuple[Path, int]) -> None:
    model = onnx_file.load(exported[0])
    passes.run(model, Recording())
    text = ir.to_proto(model).SerializeToString()
    assert b"stack_trace" not in text
    assert b"site-packages" not in text


def test_a_tied_head_reads_the_embeddings_packed_matrix(exported: tuple[Path, int]) -> None:
    model = onnx_file.load(exported[0])
    report = passes.run(model, Recording())
    tied = [record for record in report.matrices if record.kinds == ("gather", "matmul")]
    shared = {id(node.inputs[1]) for node in bcq_nodes(model) if node.op_type == "BcqGather"}
    heads = [n for n in bcq_nodes(model) if n.op_type == "BcqMatMul" and id(n.inputs[1]) in shared]
    assert len(tied) == len(heads)


def test_the_library_computes_what_the_functions_compute(exported: tuple[Path, int], tmp_path: Path) -> None:
    from bcq import runtime

    try:
        runtime.library_path()
    except BcqError as fault:
        pytest.skip(f"the operator library is not built: {fault}")
    model = onnx_file.load(exported[0])
    passes.run(model, Recording())
    write_model(model, tmp_path / "model.onnx")
    feeds: Feeds = {"input_ids": np.random.default_rng(0).integers(0, 100, (2, 7))}
    (got,) = runtime.session(tmp_path / "model.onnx").run(None, feeds)
    (expected,) = run_without_library(tmp_path / "model.onnx", feeds)
    # Each operator may be off by 1e-4 of its result (accuracy_level 0); seven follow each other in one layer.
    np.testing.assert_allclose(got, expected, rtol=0, atol=7e-4 * np.abs(expected).max())
