# SPDX-License-Identifier: Apache-2.0
"""Weight sources: solved from the graph's own tensors by the options, or taken from a base by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest

from bcq import packing, passes
from bcq.errors import InputError, UnsupportedError
from bcq.matrices.plan import QuantizeOptions
from bcq.matrices.resume import Finished
from bcq.packing import PackedWeight
from bcq.passes import FromBase, Left, MatrixRef, SolveOnTheFly
from graphs import model_of, normal, random_weight

TWO = "main (float[m, 64] x) => (float[m, 64] y) { h = MatMul (x, a) y = MatMul (h, b) }"


def ref(name: str = "w", transposed: bool = False, kinds: tuple[str, ...] = ("matmul",)) -> MatrixRef:
    stored = normal(20, 64)
    tensor = ir.Tensor(np.ascontiguousarray(stored.T) if transposed else stored)
    return MatrixRef(name, 20, 64, transposed, tensor, kinds)


def test_a_solved_matrix_has_the_bits_and_groups_of_the_options() -> None:
    options = QuantizeOptions(bits=3, group_size=32, method="greedy", offset=True)
    packed = SolveOnTheFly(options).pack(ref())
    assert isinstance(packed, PackedWeight)
    assert (packed.bits, packed.group_size, packed.rows, packed.inputs) == (3, 32, 20, 64)
    assert packed.offset.size > 0
    error = packing.unpack(packed).dequantize() - ref().read()
    assert np.square(error).mean() < 0.15  # greedy at 3 bits leaves well below 15 % of unit variance


def test_row_wise_groups_span_the_whole_row() -> None:
    packed = SolveOnTheFly(QuantizeOptions(group_size=0, method="greedy")).pack(ref())
    assert isinstance(packed, PackedWeight)
    assert packed.group_size == 64


def test_exceptions_by_name_change_bits_or_keep_a_matrix() -> None:
    options = QuantizeOptions(bits=2, method="greedy", overrides=("first=4", "second=keep"))
    source = SolveOnTheFly(options)
    first = source.pack(ref("first"))
    assert isinstance(first, PackedWeight)
    assert first.bits == 4
    second = source.pack(ref("second"))
    assert second == Left("kept by --set 'second=keep'", requested=True)


def test_an_exception_has_its_own_group_size_and_offset() -> None:
    options = QuantizeOptions(bits=2, method="greedy", overrides=("first=3:g32:offset", "second=1:g0"))
    source = SolveOnTheFly(options)
    first, second = source.pack(ref("first")), source.pack(ref("second"))
    assert isinstance(first, PackedWeight)
    assert isinstance(second, PackedWeight)
    assert (first.bits, first.group_size, first.offset.size) == (3, 32, 64)  # 32 rows with padding, 2 groups
    assert (second.bits, second.group_size, second.offset.size) == (1, 64, 0)


def test_embeddings_stay_dense_when_the_user_says_so() -> None:
    source = SolveOnTheFly(QuantizeOptions(method="greedy", embeddings=False))
    left = source.pack(ref(kinds=("gather", "matmul")))
    assert isinstance(left, Left)
    assert left.requested
    assert isinstance(source.pack(ref()), PackedWeight)


def test_a_matrix_and_its_transposed_copy_are_the_same_matrix() -> None:
    source = SolveOnTheFly(QuantizeOptions())
    assert source.identity(ref("a")) == source.identity(ref("b", transposed=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name_and_place(value: float) -> None:
    weight = normal(64, 64)
    weight[5, 7] = value
    model = model_of(TWO, a=normal(64, 64), b=weight)
    with pytest.raises(InputError, match=r"matrix 'b' holds .* at output 7, input 5") as caught:
        passes.run(model, SolveOnTheFly(QuantizeOptions(method="greedy")))
    assert caught.value.code == "E106"


def test_weights_that_wait_on_the_disk_are_equal_and_mapped(tmp_path: Path) -> None:
    options = QuantizeOptions(method="greedy")
    in_memory = SolveOnTheFly(options).pack(ref())
    finished = Finished(tmp_path / "out")
    finished.open()
    assert isinstance(in_memory, PackedWeight)
    for _ in range(2):  # solved, then found
        waiting = SolveOnTheFly(options, finished).pack(ref())
        assert isinstance(waiting, PackedWeight)
        for name, array in in_memory.tensors().items():
            np.testing.assert_array_equal(array, waiting.tensors()[name])
        assert isinstance(waiting.codes, np.memmap)
    finished.close(None)
    assert list(tmp_path.iterdir()) == []


class Base:
    """The part of a quantized base that a weight source uses."""

    def __init__(self, weights: dict[str, PackedWeight], **options: Any) -> None:
        self.weights = weights
        self.folder = Path("absent")  # it has no report, so errors are not known
        self.config = {"quantization_config": {"quant_method": "bcq", **options}}

    def find(self, name: str) -> Any:
        stored = name.removesuffix(".tied")
        return type("Found", (), {"stored": stored, "name": stored}) if stored in self.weights else None

    def packed(self, name: str, bits: int | None = None) -> PackedWeight:
        return self.weights[name.removesuffix(".tied")]


def from_base(weights: dict[str, PackedWeight], **options: Any) -> FromBase:
    return FromBase(cast(Any, Base(weights, **options)))


def test_a_base_gives_matrices_by_name() -> None:
    a, b = (packing.pack(random_weight(64, 64, seed=seed)) for seed in (1, 2))
    model = model_of(TWO, a=np.zeros((64, 64), np.float32), b=np.zeros((64, 64), np.float32))
    report = passes.run(model, from_base({"a": a, "b": b}))
    assert [record.bits for record in report.matrices] == [3, 3]
    codes = model.graph.initializers["b.codes"].const_value
    assert codes is not None
    np.testing.assert_array_equal(codes.numpy(), b.codes)


def test_tied_names_of_a_base_are_one_matrix() -> None:
    source = from_base({"a": packing.pack(random_weight(20, 64))})
    assert source.identity(ref("a")) == source.identity(ref("a.tied"))
    assert source.identity(ref("a")) != source.identity(ref("b"))


def test_a_base_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"has N, K = \(20, 32\), the graph expects \(20, 64\)") as caught:
        from_base({"w": packing.pack(random_weight(20, 32))}).pack(ref())
    assert caught.value.code == "E109"


def test_what_the_user_kept_when_the_base_was_made_is_told_from_what_is_just_missing() -> None:
    source = from_base({}, bits=3, overrides=["kept=keep"])
    assert source.pack(ref("kept")) == Left("kept by --set 'kept=keep'", requested=True)
    assert source.pack(ref("missing")) == Left("the quantized base holds it dense")


def test_a_packed_model_is_not_packed_again() -> None:
    model = model_of(TWO, a=normal(64, 64), b=normal(64, 64))
    passes.run(model, SolveOnTheFly(QuantizeOptions(method="greedy")))
    with pytest.raises(UnsupportedError, match="it is packed") as caught:
        passes.run(model, SolveOnTheFly(QuantizeOptions(method="greedy")))
    assert caught.value.code == "E401"


def test_an_opset_before_13_is_refused_with_what_to_do() -> None:
    model = model_of(TWO, opset=12, a=normal(64, 64), b=normal(64, 64))
    with pytest.raises(UnsupportedError, match="opset 12, expected 13 or later") as caught:
        passes.run(model, SolveOnTheFly(QuantizeOptions(method="greedy")))
    assert "version_converter" in caught.value.hint


def test_a_matrix_that_packing_would_not_shrink_stays_dense() -> None:
    tiny = MatrixRef("w", 1, 64, False, ir.Tensor(normal(1, 64)), ("matmul",))
    left = SolveOnTheFly(QuantizeOptions(bits=4, method="greedy")).pack(tiny)
    # 16 rows of 2 words and 1 float16 alpha for each of 4 planes, against 64 floats.
    assert left == Left("packed it would take 640 bytes, dense 256")


def test_a_table_of_rotary_positions_is_no_trained_embedding() -> None:
    angles = np.outer(np.arange(64), 1.0 / 10000 ** (np.arange(32) / 32))
    table = np.concatenate([np.cos(angles), np.cos(angles)], axis=1).astype(np.float32)
    source = SolveOnTheFly(QuantizeOptions(method="greedy"))
    left = source.pack(MatrixRef("cos_cached", 64, 64, False, ir.Tensor(table), ("gather",)))
    assert isinstance(left, Left)
    assert "rotary" in left.reason
    assert isinstance(source.pack(MatrixRef("w", 64, 64, False, ir.Tensor(table), ("matmul",))), PackedWeight)
