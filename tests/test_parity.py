# SPDX-License-Identifier: Apache-2.0
"""Parity's figures, and that it fails when the runtime computes something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="PyTorch is the reference")

import bcq
from bcq import parity
from bcq.errors import InputError, UsageError
from bcq.export import export
from bcq.exporting.write import write_model
from bcq.files.exported import ExportedWeights
from bcq.files.manifest import write_manifest
from bcq.matrices.plan import QuantizeOptions
from bcq.parity import compare, random_tokens, relative_rms, row_cosines, verify
from bcq.parity import graph as parity_graph
from bcq.parity.reference import Decoded
from graphs import model_of, normal

LOOK_UP = """graph (int64[n, s] tokens) => (float[n, s, 80] y) {
    rows = Gather (table, tokens)
    y = MatMul (rows, head)
}"""
OPTIONS = QuantizeOptions(bits=3, group_size=32, method="greedy")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """An ``.onnx`` file with a table and a matrix stored [K, N], and its export."""
    write_model(model_of(LOOK_UP, table=normal(50, 64), head=normal(64, 80, seed=2)), tmp_path / "in.onnx")
    export(tmp_path / "in.onnx", tmp_path / "out", OPTIONS)
    return tmp_path / "in.onnx", tmp_path / "out"


def test_relative_rms_and_cosine_are_what_their_names_say() -> None:
    assert relative_rms(np.array([3.0, 4.0]), np.array([30.0, 40.0])) == pytest.approx(0.1)
    assert relative_rms(np.zeros(3), np.zeros(3)) == 0
    np.testing.assert_allclose(
        row_cosines(np.array([[1, 0], [1, 1], [0, 0]]), np.array([[2, 0], [1, -1], [0, 0]])),
        [1, 0, 1],
        atol=1e-12,
    )


def test_equal_outputs_pass_and_a_nan_or_a_large_difference_fails() -> None:
    expected = normal(4, 8)
    assert compare([expected], [expected], 1e-4).ok
    assert not compare([expected * 1.01], [expected], 1e-4).ok
    assert not compare([np.where(expected > 1, np.nan, expected)], [expected], 1e-4).ok


def test_an_export_of_a_graph_equals_the_original_with_dequantized_weights(pair: tuple[Path, Path]) -> None:
    source, out = pair
    result = verify(out, source)
    assert result.ok
    assert result.tokens_equal is None
    assert result.original is not None
    assert 0.05 < result.original["relative"] < 0.5  # three bits cost about 0.2 on normal weights


def test_without_the_original_the_functions_in_the_file_are_the_reference(pair: tuple[Path, Path]) -> None:
    result = verify(pair[1])
    assert result.ok
    assert result.original is None


def test_a_runtime_that_computes_something_else_fails(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcq.runtime import session as real

    class Off:
        """One output element in a hundred is wrong by a tenth."""

        def __init__(self, session: Any) -> None:
            self.session = session

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run(self, names: Any, feeds: Any) -> list[Any]:
            (output,) = self.session.run(names, feeds)
            return [np.where(np.arange(output.size).reshape(output.shape) % 100 == 0, output * 1.1, output)]

    def faulty(path: Any, with_library: bool = True) -> Any:
        session = real(path, with_library=with_library)
        return Off(session) if with_library else session

    monkeypatch.setattr(parity_graph, "session", faulty)
    assert not verify(pair[1], pair[0]).ok
    assert not verify(pair[1]).ok


def test_another_original_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    write_model(model_of(LOOK_UP, table=normal(50, 64, seed=8), head=normal(64, 80, seed=9)), other)
    with pytest.raises(InputError, match="resembles no matrix") as caught:
        verify(pair[1], other)
    assert caught.value.code == "E109"


def test_flipped_codes_are_found(pair: tuple[Path, Path]) -> None:
    data = pair[1] / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    write_manifest(pair[1], [], 0)  # a manifest that was made for the damaged file
    with pytest.raises(InputError, match="hash") as caught:
        verify(pair[1], pair[0])
    assert caught.value.code == "E109"


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "bcq_report.json"])
@pytest.mark.parametrize("place", [0, -1])
def test_one_flipped_bit_in_any_file_is_refused_with_its_name(
    pair: tuple[Path, Path], name: str, place: int
) -> None:
    content = bytearray((pair[1] / name).read_bytes())
    content[place] ^= 1
    (pair[1] / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} has other content") as caught:
        verify(pair[1])
    assert (caught.value.code, caught.value.exit_code) == ("E109", 3)


@pytest.mark.parametrize("text", [None, "{", '{"files": {}}'])
def test_a_folder_without_a_manifest_of_its_model_is_refused(
    pair: tuple[Path, Path], text: str | None
) -> None:
    (pair[1] / "MANIFEST.json").unlink()
    if text is not None:
        (pair[1] / "MANIFEST.json").write_text(text)
    with pytest.raises(InputError, match=r"MANIFEST\.json") as caught:
        verify(pair[1])
    assert caught.value.code == "E109"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda node: node.attribute.append(onnx.helper.make_attribute("extra", 1)), "attribute 'extra'"),
        (lambda node: node.attribute.remove(node.attribute[0]), "attribute 'format_version': got none"),
        (lambda node: setattr(node, "op_type", "BcqOther"), "BcqOther"),
    ],
)
def test_a_node_that_the_contract_does_not_know_is_refused(
    pair: tuple[Path, Path], change: Callable[[Any], None], reason: str
) -> None:
    model = onnx.load(pair[1] / "model.onnx", load_external_data=False)
    change(next(node for node in model.graph.node if node.domain == "bcq"))
    onnx.save(model, pair[1] / "model.onnx")
    write_manifest(pair[1], [], 0)
    with pytest.raises(InputError, match=reason) as caught:
        verify(pair[1])
    assert caught.value.code == "E109"


def test_a_constant_that_is_read_in_both_directions_matches_both_of_its_packed_forms(tmp_path: Path) -> None:
    graph = """graph (int64[n] tokens) => (float[n, 64] y) {
        rows = Gather (table, tokens)
        turned = Transpose <perm = [1, 0]> (table)
        logits = MatMul (rows, turned)
        y = MatMul (logits, table)
    }"""
    write_model(model_of(graph, table=normal(100, 64)), tmp_path / "in.onnx")
    export(tmp_path / "in.onnx", tmp_path / "out", OPTIONS)
    assert len(ExportedWeights.open(tmp_path / "out").packed) == 2
    assert verify(tmp_path / "out", tmp_path / "in.onnx").ok


def test_two_equal_constants_match_both_of_their_packed_forms(tmp_path: Path) -> None:
    graph = """graph (float[n, 64] x) => (float[n, 64] y) {
        z = MatMul (x, one)
        y = MatMul (z, two)
    }"""
    write_model(model_of(graph, one=normal(64, 64), two=normal(64, 64)), tmp_path / "in.onnx")
    export(tmp_path / "in.onnx", tmp_path / "out", OPTIONS)
    assert verify(tmp_path / "out", tmp_path / "in.onnx").ok


def test_a_graph_that_holds_only_for_one_row_is_compared_on_one(tmp_path: Path) -> None:
    graph = """graph (float[n, 64] x) => (float[m, 1, 80] y) {
        one = Reshape (x, shape)
        y = MatMul (one, head)
    }"""
    shape = np.array([1, 1, 64], np.int64)
    write_model(model_of(graph, head=normal(64, 80), shape=shape), tmp_path / "in.onnx")
    export(tmp_path / "in.onnx", tmp_path / "out", OPTIONS)
    assert verify(tmp_path / "out", tmp_path / "in.onnx").ok
    assert verify(tmp_path / "out").ok


def test_a_constant_that_stays_dense_for_one_reader_keeps_its_values_there(tmp_path: Path) -> None:
    graph = """graph (int64[n] tokens) => (float[n, 64] y, float[100, n] z) {
        y = Gather (table, tokens)
        z = Gather <axis = 1> (table, tokens)
    }"""
    write_model(model_of(graph, table=normal(100, 64)), tmp_path / "in.onnx")
    export(tmp_path / "in.onnx", tmp_path / "out", OPTIONS, allow_partial=True)
    assert ExportedWeights.open(tmp_path / "out").gather_rows == {"tokens": 64}
    assert verify(tmp_path / "out", tmp_path / "in.onnx").ok


def test_a_float16_graph_may_differ_by_the_roundings_of_float16(tmp_path: Path) -> None:
    graph = """graph (int64[n] tokens) => (float16[n, 80] y) {
        rows = Gather (table, tokens)
        y = MatMul (rows, head)
    }"""
    table, head = normal(50, 64).astype(np.float16), normal(64, 80).astype(np.float16)
    write_model(model_of(graph, table=table, head=head), tmp_path / "in.onnx")
    export(tmp_path / "in.onnx", tmp_path / "out", OPTIONS)
    result = verify(tmp_path / "out", tmp_path / "in.onnx")
    assert result.ok
    assert result.tolerance < 1e-3  # sqrt(2) * 5e-4


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_below_one_are_refused(tmp_path: Path, steps: Any) -> None:
    with pytest.raises(UsageError, match="steps") as caught:
        verify(tmp_path, steps=steps)
    assert caught.value.code == "E202"


def test_tokens_stay_within_the_rows_that_a_graph_looks_up(pair: tuple[Path, Path]) -> None:
    weights = ExportedWeights.open(pair[1])
    assert weights.gather_rows == {"tokens": 50}
    feeds = parity_graph.random_feeds(bcq.session(pair[1]), weights)
    assert 0 <= feeds["tokens"].min() <= feeds["tokens"].max() < 50
    assert len(np.unique(feeds["tokens"])) > 3


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        verify(tmp_path / "absent")


def test_random_tokens_are_seeded() -> None:
    assert random_tokens(100, 5) == random_tokens(100, 5)
    assert max(random_tokens(7, 200)) == 6


def decoded(logits: list[list[float]]) -> Decoded:
    rows = np.array(logits, np.float32)
    return Decoded(rows, [int(row.argmax()) for row in rows], [])


def test_other_tokens_fail_unless_the_reference_is_tied_within_tolerance() -> None:
    from bcq.parity.tokens import with_tokens

    base = compare([normal(2, 2)], [normal(2, 2)], 1e-3)
    tied = with_tokens(base, decoded([[1.0, 1.00001]]), decoded([[1.00001, 1.0]]), prompt=1)
    assert (tied.tokens_equal, tied.ok) == (False, True)
    clear = with_tokens(base, decoded([[1.0, 1.2]]), decoded([[1.2, 1.0]]), prompt=1)
    assert (clear.tokens_equal, clear.ok) == (False, False)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    from types import SimpleNamespace

    from bcq.parity.decoder import _prompt

    model: Any = SimpleNamespace(context_length=8, vocabulary=10)
    with pytest.raises(UsageError, match="8 positions"):
        _prompt(model, None, [1] * 5, steps=4)
    assert len(_prompt(model, None, None, steps=4)) == 4
    assert parity.DEFAULT_PROMPT > 4
