# SPDX-License-Identifier: Apache-2.0
"""Small nodes that change nothing or repeat each other go; what a graph computes stays, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bcq.passes.constant_targets import constant_targets
from bcq.passes.divide_by_root import divide_by_root
from bcq.passes.drop_identities import drop_identities
from bcq.passes.keep_rank import keep_rank
from bcq.passes.merge_unsqueezes import merge_unsqueezes
from bcq.passes.share_constants import share_constants
from bcq.passes.share_nodes import share_nodes
from bcq.passes.share_sizes import share_sizes
from bcq.passes.sink_scalars import sink_scalars
from bcq.passes.sink_split import sink_split
from bcq.passes.swap_axes import swap_axes
from bcq.passes.sweep import sweep_unread
from bcq.passes.work import Work
from bcq.progress import SILENT
from graphs import Quick, model_of, normal, op_types, run_without_library

Step = Callable[[ir.Model, Work], None]
BATCH, TOKENS = 2, 3


def tidied(text: str, *steps: Step, **constants: Any) -> ir.Model:
    """The model after some passes; it must be valid and compute what it did before."""
    before, after = (model_of(f"main {text}", opset=21, **constants) for _ in range(2))
    for step in steps:
        step(after, Work(Quick(), SILENT))
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    feeds = {str(value.name): _feed(value) for value in after.graph.inputs}
    expected = run_without_library(before, feeds)
    for got, value in zip(run_without_library(after, feeds), expected, strict=True):
        assert (got.shape, got.dtype, got.tobytes()) == (value.shape, value.dtype, value.tobytes())
    return after


def _feed(value: ir.Value) -> Any:
    assert value.shape is not None
    free = {"b": BATCH, "s": TOKENS, "t": TOKENS + 1}
    shape = [dim if isinstance(dim, int) else free[str(dim.value)] for dim in value.shape]
    return normal(*shape) if value.dtype == ir.DataType.FLOAT else np.ones(shape, value.dtype.numpy())  # type: ignore[union-attr]


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


X3 = "(float[b, s, 24] x) => (float[b, s, n] y)"


def test_equal_small_constants_become_one() -> None:
    text = "(float[b, s] x) => (float[b, s, 1, 1] y) { a = Unsqueeze (x, p) y = Unsqueeze (a, q) }"
    assert list(tidied(text, share_constants, p=ints(2), q=ints(2)).graph.initializers) == ["p"]


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (np.float32(2), np.float32(2)),  # named scalars may be parameters: a name is how they are found
        (normal(1), normal(1)),
        (np.float32(2), np.float32(3)),
        (ints(2), np.array(2, np.int64)),  # another rank
    ],
)
def test_parameters_and_unequal_constants_stay(p: Any, q: Any) -> None:
    kind = "float" if p.dtype == np.float32 else "int64"
    text = f"({kind}[b, s] x) => ({kind}[b, s] y) {{ a = Mul (x, p) y = Mul (a, q) }}"
    assert len(tidied(text, share_constants, p=p, q=q).graph.initializers) == 2


SHAPES = """(float[b, s, 24] x, float[b, t] z) => (float[b, s, 4, 6] y, float[s, b, 24] v) {
    b0 = Shape <start = 0, end = 1> (x) b1 = Squeeze (b0) b2 = Reshape (b1, minus)
    s0 = Shape <start = 1, end = 2> (x) s1 = Squeeze (s0) s2 = Reshape (s1, minus)
    c0 = Shape <start = 0, end = 1> (z) c1 = Squeeze (c0) c2 = Reshape (c1, minus)
    t = Concat <axis = 0> (b2, s2, four, six) y = Reshape (x, t)
    u = Concat <axis = 0> (s2, c2, whole) v = Reshape (x, u) }"""
CONSTANTS = {"minus": ints(-1), "four": ints(4), "six": ints(6), "whole": ints(24)}


def test_a_size_is_computed_once_whatever_input_it_is_taken_from() -> None:
    model = tidied(SHAPES, share_sizes, sweep_unread, **CONSTANTS)
    assert op_types(model) == ["Shape", "Shape", "Concat", "Reshape", "Concat", "Reshape"]


def test_a_size_that_is_known_becomes_a_constant() -> None:
    text = """(float[b, s, 24] x) => (float[k, 24] y) {
        k = Shape <start = 2> (x) t = Concat <axis = 0> (m, k) y = Reshape (x, t) }"""
    model = tidied(text, share_sizes, sweep_unread, m=ints(-1))
    assert op_types(model) == ["Reshape"]


def test_sizes_of_different_names_stay_apart() -> None:
    text = """(float[b, s] x, float[b, t] z) => (float[n] y) {
        p = Shape <start = 1> (x) q = Shape <start = 1> (z)
        c = Concat <axis = 0> (p, q) y = Cast <to = 1> (c) }"""
    assert op_types(tidied(text, share_sizes, sweep_unread)) == ["Shape", "Shape", "Concat", "Cast"]


IDENTITIES = {
    "Reshape to the same shape": ("a = Reshape (x, t)", {"t": ints(0, -1, 24)}),
    "Reshape to the sizes of another value": ("h = Shape (x) a = Reshape (x, h)", {}),
    "Expand": ("h = Shape (x) a = Expand (x, h)", {}),
    "Transpose": ("a = Transpose <perm = [0, 1, 2]> (x)", {}),
    "Cast": ("a = Cast <to = 1> (x)", {}),
    "Identity": ("a = Identity (x)", {}),
    "Slice": ("a = Slice (x, zero, most, one, step)",
              {"zero": ints(0), "most": ints(2**63 - 1), "one": ints(1), "step": ints(1)}),
    "Mul by one": ("a = Mul (val_1, x)", {"val_1": np.float32(1)}),
}  # fmt: skip


def test_a_transpose_and_the_one_that_undoes_it_go_and_so_do_reshapes_there_and_back() -> None:
    text = """(float[b, s, 24] x) => (float[b, s, 24] y) {
        heads = Reshape (x, cut)
        turned = Transpose <perm = [0, 2, 1, 3]> (heads)
        back = Transpose <perm = [0, 2, 1, 3]> (turned)
        whole = Reshape (back, joined)
        y = Relu (whole)
    }"""
    cut, joined = ints(0, 0, 4, 6), ints(0, 0, 24)
    assert op_types(tidied(text, drop_identities, sweep_unread, cut=cut, joined=joined)) == ["Relu"]


def test_a_transpose_that_another_does_not_undo_stays() -> None:
    text = """(float[b, s, 24] x) => (float[24, b, s] y) {
        turned = Transpose <perm = [1, 2, 0]> (x)
        y = Transpose <perm = [1, 2, 0]> (turned)
    }"""
    assert op_types(tidied(text, drop_identities)) == ["Transpose", "Transpose"]


@pytest.mark.parametrize("case", IDENTITIES)
def test_a_node_that_changes_nothing_is_passed_by(case: str) -> None:
    body, constants = IDENTITIES[case]
    text = f"(float[b, s, 24] x) => (float[b, s, 24] y) {{ {body} y = Neg (a) }}"
    assert op_types(tidied(text, drop_identities, sweep_unread, **constants)) == ["Neg"]


NO_IDENTITIES = {
    "Reshape": ("a = Reshape (x, t)", {"t": ints(-1, 24)}),
    "Reshape that keeps the number of elements": ("a = Reshape (x, t)", {"t": ints(0, 24, -1)}),
    "Expand": ("a = Expand (x, t)", {"t": ints(2, 1, 1, 1)}),
    "Transpose": ("a = Transpose <perm = [1, 0, 2]> (x)", {}),
    "Cast": ("a = Cast <to = 11> (x)", {}),
    "Slice from 1": ("a = Slice (x, p, most, p)", {"p": ints(1), "most": ints(2**63 - 1)}),
    "Slice backwards": ("a = Slice (x, p, q, r, s)",
                        {"p": ints(-1), "q": ints(-(2**63)), "r": ints(1), "s": ints(-1)}),
    "Mul by a parameter": ("a = Mul (x, w)", {"w": np.float32(1)}),
    "Mul that adds an axis": ("a = Mul (x, val_1)", {"val_1": np.ones((1, 1, 1, 1), np.float32)}),
    "Add of zero, which changes -0.0": ("a = Add (x, val_0)", {"val_0": np.float32(0)}),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_IDENTITIES)
def test_a_node_that_changes_anything_stays(case: str) -> None:
    body, constants = NO_IDENTITIES[case]
    text = f"(float[b, s, 24] x) => (float[b, s, n] y) {{ {body} c = Cast <to = 1> (a) y = Neg (c) }}"
    text = text.replace("float[b, s, n] y", "float y") if "Expand" in case else text
    model = model_of(f"main {text}", opset=21, **constants)
    before = [name for name in op_types(model) if name != "Cast" or case == "Cast"]
    drop_identities(model, Work(Quick(), SILENT))
    assert [name for name in op_types(model) if name != "Cast" or case == "Cast"] == before


def test_an_identity_that_gives_an_output_of_the_graph_stays() -> None:
    text = "(float[b, s] x) => (float[b, s] y) { y = Identity (x) }"
    assert op_types(tidied(text, drop_identities)) == ["Identity"]


FLAT = """(float[b, s, 24] x) => (float[b, s, 16] y) {
    f = Reshape (x, flat) m = MatMul (f, w) a = Add (m, bias) r = Relu (a)
    b0 = Shape <end = 2> (x) t = Concat <axis = 0> (b0, wide) y0 = Reshape (r, t) y = Neg (y0) }"""
WEIGHTS: dict[str, Any] = {
    "flat": ints(-1, 24), "w": normal(24, 16), "bias": normal(16, seed=3), "wide": ints(16)
}  # fmt: skip


def test_a_product_on_flattened_tokens_runs_on_the_tokens() -> None:
    model = tidied(FLAT, keep_rank, drop_identities, sweep_unread, **WEIGHTS)
    assert op_types(model) == ["MatMul", "Add", "Relu", "Neg"]


def test_two_flattened_values_that_meet_stay_whole_too() -> None:
    text = FLAT.replace("r = Relu (a)", "g = Reshape (z, deep) r = Mul (a, g)")
    text = text.replace("float[b, s, 24] x", "float[b, s, 24] x, float[b, s, 16] z")
    model = tidied(text, keep_rank, drop_identities, sweep_unread, deep=ints(-1, 16), **WEIGHTS)
    assert op_types(model) == ["MatMul", "Add", "Mul", "Neg"]


def test_a_reader_that_needs_two_axes_gets_a_flattened_copy() -> None:
    text = FLAT.replace("(float[b, s, 16] y)", "(float[b, s, 16] y, float[16, n] z)")
    text = text.replace("y = Neg (y0)", "y = Neg (y0) z = Transpose (m)")
    model = tidied(text, keep_rank, drop_identities, sweep_unread, **WEIGHTS)
    assert op_types(model) == ["MatMul", "Reshape", "Add", "Relu", "Neg", "Transpose"]


NOT_LIFTED = {
    "nothing turns it back": ("(float[b, s, 24] x) => (float[n, 16] y) "
                              "{ f = Reshape (x, flat) m = MatMul (f, w) y = Add (m, bias) }"),
    "a sum over the tokens": FLAT.replace("r = Relu (a)", "r = CumSum (a, none)"),
    "a constant for each token": FLAT.replace("r = Relu (a)", "r = Mul (a, token)"),
    "other sizes": FLAT.replace("b0 = Shape <end = 2> (x)", "b0 = Shape <end = 2> (v)").replace(
        "float[b, s, 24] x", "float[b, s, 24] x, float[s, b, 24] v"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_LIFTED)
def test_flattening_that_is_needed_stays(case: str) -> None:
    more = {"none": np.array(0, np.int64), "token": normal(BATCH * TOKENS, 1)}
    used = {name: array for name, array in more.items() if name in NOT_LIFTED[case]}
    model = tidied(NOT_LIFTED[case], keep_rank, drop_identities, **WEIGHTS, **used)
    assert op_types(model)[0] == "Reshape"


SWAP = """(float[b, 4, s, 6] x) => (float[b, 4, n, m] y) {
    q = Shape <start = 2> (x) r = Concat <axis = 0> (minus, q) f = Reshape (x, r)
    t = Transpose <perm = [0, 2, 1]> (f)
    h = Shape <end = 2> (x) k = Shape <start = 2, end = 3> (x) c = Concat <axis = 0> (h, six, k)
    y0 = Reshape (t, c) y = Neg (y0) }"""


def test_the_last_two_axes_are_swapped_by_one_transpose() -> None:
    model = tidied(SWAP, swap_axes, sweep_unread, minus=ints(-1), six=ints(6))
    assert op_types(model) == ["Transpose", "Neg"]
    assert list(model.graph[0].attributes["perm"].as_ints()) == [0, 1, 3, 2]


@pytest.mark.parametrize("perm", ["[0, 1, 2]", "[2, 1, 0]"])
def test_another_order_of_axes_stays(perm: str) -> None:
    model = tidied(SWAP.replace("[0, 2, 1]", perm), swap_axes, minus=ints(-1), six=ints(6))
    assert op_types(model).count("Reshape") == 2


def test_axes_that_are_added_one_after_another_are_added_at_once() -> None:
    text = """(float[b, s] x) => (float[1, b, 1, s, 1] y) {
        p = Unsqueeze (x, one) q = Unsqueeze (p, zero) y = Unsqueeze (q, last) }"""
    model = tidied(text, merge_unsqueezes, sweep_unread, one=ints(1), zero=ints(0), last=ints(-1))
    assert op_types(model) == ["Unsqueeze"]


def test_axes_that_are_computed_stay_apart() -> None:
    text = """(float[b, s] x, int64[1] i) => (float[b, 1, s, 1] y) {
        p = Unsqueeze (x, i) y = Unsqueeze (p, last) }"""
    assert op_types(tidied(text, merge_unsqueezes, last=ints(-1))) == ["Unsqueeze", "Unsqueeze"]


def test_a_target_of_kept_sizes_becomes_a_constant() -> None:
    text = (
        X3.replace("s, n]", "s, 4, 6]")
        + """ { h = Shape <end = 2> (x)
        t = Concat <axis = 0> (h, four, six) y = Reshape <allowzero = 1> (x, t) }"""
    )
    model = tidied(text, constant_targets, sweep_unread, four=ints(4), six=ints(6))
    assert op_types(model) == ["Reshape"]
    target = model.graph[0].inputs[1]
    assert target is not None
    assert target.const_value is not None
    assert target.const_value.numpy().tolist() == [0, 0, 4, 6]


def test_a_target_with_two_sizes_that_move_is_still_computed() -> None:
    text = """(float[b, s, 24] x) => (float[24, b, s] y) {
        h = Shape <end = 2> (x) t = Concat <axis = 0> (whole, h) y = Reshape (x, t) }"""
    model = tidied(text, constant_targets, whole=ints(24))
    assert op_types(model) == ["Shape", "Concat", "Reshape"]


def test_a_scalar_goes_behind_what_only_moves_elements() -> None:
    text = """(float[b, s, 24] x) => (float[b, 4, s, 6] y) {
        n = Neg (x) a = Mul (n, val_1) c = Reshape (a, heads)
        t = Transpose <perm = [0, 2, 1, 3]> (c) y = Neg (t) }"""
    model = tidied(text, sink_scalars, val_1=np.float32(0.3), heads=ints(0, 0, 4, 6))
    assert op_types(model) == ["Neg", "Reshape", "Transpose", "Mul", "Neg"]


@pytest.mark.parametrize("name", ["val_1", "scale"])
def test_a_vector_or_a_parameter_stays_where_it_is(name: str) -> None:
    text = f"""(float[b, s, 24] x) => (float[b, s, 4, 6] y) {{
        n = Neg (x) a = Mul (n, {name}) c = Reshape (a, heads) y = Neg (c) }}"""
    constants: dict[str, Any] = {name: normal(24) if name == "val_1" else np.float32(0.3)}
    model = tidied(text, sink_scalars, heads=ints(0, 0, 4, 6), **constants)
    assert op_types(model) == ["Neg", "Mul", "Reshape", "Neg"]


HEADS = """(float[b, s, 24] x) => (float[b, 2, s, 6] q, float[b, 1, s, 6] k, float[b, 1, s, 6] v) {
    i, j, l = Split <axis = -1> (x, parts)
    a = Reshape (i, two) q = Transpose <perm = [0, 2, 1, 3]> (a)
    c = Reshape (j, one) k = Transpose <perm = [0, 2, 1, 3]> (c)
    d = Reshape (l, one) v = Transpose <perm = [0, 2, 1, 3]> (d) }"""
CUT = {"parts": ints(12, 6, 6), "two": ints(0, 0, 2, 6), "one": ints(0, 0, -1, 6)}


def test_heads_are_cut_and_turned_whole_and_split_then() -> None:
    model = tidied(HEADS, sink_split, **CUT)
    assert op_types(model) == ["Reshape", "Transpose", "Split"]
    assert [value.name for value in model.graph.outputs] == ["q", "k", "v"]


def test_heads_that_are_not_turned_are_still_cut_whole() -> None:
    text = HEADS.replace("Transpose <perm = [0, 2, 1, 3]>", "Neg").replace("b, 2, s", "b, s, 2").replace(
        "b, 1, s", "b, s, 1")  # fmt: skip
    assert op_types(tidied(text, sink_split, **CUT)) == ["Reshape", "Split", "Neg", "Neg", "Neg"]


LAST = "float[b, 1, s, 6] v)"
NOT_SUNK = {
    "a part is read twice": HEADS.replace(LAST, "float[b, 1, s, 6] v, float[b, s, 6] o)").replace(
        "d = Res", "o = Neg (l) d = Res"
    ),
    "one is turned otherwise": HEADS.replace(LAST, "float[b, 1, 6, s] v)").replace(
        "v = Transpose <perm = [0, 2, 1, 3]>", "v = Transpose <perm = [0, 2, 3, 1]>"
    ),
    "heads of another size": HEADS.replace(LAST, "float[b, 2, s, 3] v)").replace("(l, one)", "(l, half)"),
}


@pytest.mark.parametrize("case", NOT_SUNK)
def test_parts_that_are_not_alike_are_split_first(case: str) -> None:
    more = {"half": ints(0, 0, 2, 3)} if "half" in NOT_SUNK[case] else {}
    assert op_types(tidied(NOT_SUNK[case], sink_split, **CUT, **more))[0] == "Split"


def test_nodes_that_compute_the_same_become_one() -> None:
    text = "(float[b, s] x) => (float[b, s] y) { p = Neg (x) q = Neg (x) y = Mul (p, q) }"
    assert op_types(tidied(text, share_nodes)) == ["Neg", "Mul"]


def test_equal_nodes_that_give_outputs_of_the_graph_still_give_both() -> None:
    text = "(float[b, s] x) => (float[b, s] y, float[b, s] z) { y = Neg (x) z = Neg (x) }"
    model = tidied(text, share_nodes, drop_identities, sweep_unread)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]


def test_equal_sizes_that_a_branch_reads_stay_readable() -> None:
    text = """(float[b, s] x, bool c) => (int64[n] y) {
        p = Shape (x) q = Shape (x)
        y = If (c) <then_branch = one () => (int64[n] r) { r = Neg (q) },
                    else_branch = two () => (int64[n] t) { t = Abs (q) }> }"""
    assert op_types(tidied(text, share_sizes, share_nodes, drop_identities, sweep_unread)) == ["Shape", "If"]


def test_nodes_that_draw_random_numbers_stay_apart() -> None:
    text = "{ p = RandomNormalLike (x) q = RandomNormalLike (x) y = Sub (p, q) }"
    model = model_of(f"main (float[4] x) => (float[4] y) {text}")
    share_nodes(model, Work(Quick(), SILENT))
    assert op_types(model) == ["RandomNormalLike", "RandomNormalLike", "Sub"]


def test_unread_nodes_and_their_small_constants_go_and_parameters_stay() -> None:
    text = "(float[b, s] x) => (float[b, s] y) { u = Unsqueeze (x, p) v = Neg (u) y = Neg (x) }"
    model = tidied(text, sweep_unread, p=ints(0), w=normal(24))
    assert op_types(model) == ["Neg"]
    assert list(model.graph.initializers) == ["w"]


NORM = """(float[b, s, 24] x) => (float[b, s, 24] y) {
    p = Pow (x, two) m = ReduceMean (p, last) e = Add (m, eps) r = Sqrt (e) i = Reciprocal (r)
    n = Mul (x, i) y = Mul (w, n) }"""
NORM_CONSTANTS = {"two": np.float32(2), "last": ints(-1), "eps": np.float32(1e-6), "w": normal(24)}


@pytest.mark.parametrize("factors", ["x, i", "i, x"])
def test_a_product_with_the_reciprocal_of_a_root_becomes_a_quotient(factors: str) -> None:
    text = f"main {NORM.replace('Mul (x, i)', f'Mul ({factors})')}"
    before, after = (model_of(text, opset=21, **NORM_CONSTANTS) for _ in range(2))
    for step in (divide_by_root, sweep_unread):
        step(after, Work(Quick(), SILENT))
    assert op_types(after) == ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
    x = {"x": normal(2, 3, 24)}
    expected = run_without_library(before, x)[0]
    # Reciprocal, product and scale on one side, quotient and scale on the other: five roundings of 2^-24. As
    # one operator, onnxruntime adds the 24 squares in another order: 24 roundings a side, halved by the root.
    np.testing.assert_allclose(run_without_library(after, x)[0], expected, rtol=29 * 2.0**-24)


@pytest.mark.parametrize("change", [("i = Reciprocal (r)", "i = Neg (r)"), ("r = Sqrt (e)", "r = Exp (e)")])
def test_other_products_stay_products(change: tuple[str, str]) -> None:
    model = tidied(NORM.replace(*change), divide_by_root, **NORM_CONSTANTS)
    assert "Div" not in op_types(model)
