# SPDX-License-Identifier: Apache-2.0
"""Sizes that are followed symbolically are the sizes that the graph has when it runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bcq.passes.constant_targets import target_of
from bcq.passes.sizes import Dims, Sizes, broadcast, reshaped, total
from graphs import model_of, normal, run_without_library

FREE = {"b": 2, "s": 3, "t": 4}
X = "float[b, s, 24] x, float[b, t, 24] z, float[b, 1, s, t] m"
I64 = np.int64

# Each body with the sizes that must be found for its result; None: only that nothing wrong is claimed.
BODIES: dict[str, tuple[str, dict[str, Any], Dims | None]] = {
    "elementwise": ("y = Mul (x, w)", {"w": normal(24)}, ("b", "s", 24)),
    "broadcast of unlike names": ("y = Where (c, m, h)", {"c": np.array(True), "h": normal(1, 5, 1, 1)},
                                  ("b", 5, "s", "t")),
    "normalization": ("y = LayerNormalization (x, w)", {"w": normal(24)}, ("b", "s", 24)),
    "product": ("p = Transpose <perm = [0, 2, 1]> (z) y = MatMul (x, p)", {}, ("b", "s", "t")),
    "product with a matrix": ("y = MatMul (x, w)", {"w": normal(24, 7)}, ("b", "s", 7)),
    "concatenation": ("y = Concat <axis = 1> (x, z)", {}, ("b", "(s)+(t)", 24)),
    "reshape with zeros and a rest": ("y = Reshape (x, t0)", {"t0": np.array([0, 0, -1, 6])},
                                      ("b", "s", 4, 6)),
    "reshape to merged axes": ("y = Reshape (x, t0)", {"t0": np.array([-1, 24])}, None),
    "reshape to the rest": ("h = Shape <end = 1> (x) q = Concat <axis = 0> (h, n) y = Reshape (x, q)",
                            {"n": np.array([-1, 8])}, None),
    "reshape to swapped sizes": ("""h = Shape <start = 1, end = 2> (x) g = Shape <start = -3, end = -2> (x)
        q = Concat <axis = 0> (h, n, g) y = Reshape (x, q)""", {"n": np.array([-1])}, ("s", 24, "b")),
    "expand": ("h = Shape (m) y = Expand (e, h)", {"e": normal(1, 6, 1, 1)}, ("b", 6, "s", "t")),
    "squeeze": ("y = Squeeze (m, one)", {"one": np.array([1])}, ("b", "s", "t")),
    "squeeze of what is 1": ("y = Squeeze (m)", {}, None),
    "unsqueeze": ("y = Unsqueeze (x, p)", {"p": np.array([-1, 0])}, (1, "b", "s", 24, 1)),
    "slice": ("y = Slice (x, p, q, r)",
              {"p": np.array([0, 2]), "q": np.array([2**31, 9]), "r": np.array([1, -1])}, ("b", "s", 7)),
    "slice of the first axes": ("y = Slice (x, p, q)", {"p": np.array([0, 1]), "q": np.array([2**31, 2**31])},
                                ("b", "?y.1", 24)),
    "slice of axes by sizes": ("h = Shape <end = 1> (x) y = Slice (x, h, q)", {"q": np.array([2**31])}, None),
    "slice by a size": ("h = Shape <start = 1, end = 2> (x) y = Slice (x, p, h, r)",
                        {"p": np.array([0]), "r": np.array([2])}, None),
    "slice backwards": ("y = Slice (x, p, q, r, n)",
                        {"p": np.array([-1]), "q": np.array([-(2**62)]), "r": np.array([2]),
                         "n": np.array([-3])}, ("b", "s", 8)),
    "slice of the last positions": ("""h = Shape <start = 1, end = 2> (x) g = Shape <start = 1, end = 2> (z)
        d = Sub (g, h) y = Slice (z, d, q, r)""",
                                    {"q": np.array([2**62]), "r": np.array([1])}, ("b", "s", 24)),
    "slice behind a difference of other sizes": ("""h = Shape <start = 1, end = 2> (x)
        g = Shape <start = 1, end = 2> (z) d = Sub (g, h) y = Slice (x, d, q, r)""",
                                                 {"q": np.array([2**62]), "r": np.array([1])}, None),
    "slice behind a difference, but not to the end": ("""h = Shape <start = 1, end = 2> (x)
        g = Shape <start = 1, end = 2> (z) d = Sub (g, h) y = Slice (z, d, q, r)""",
                                                      {"q": np.array([2]), "r": np.array([1])}, None),
    "split": ("y, v = Split <axis = -1> (x, n)", {"n": np.array([20, 4])}, ("b", "s", 20)),
    "split in equal parts": ("y, v = Split <axis = 2, num_outputs = 2> (x)", {}, ("b", "s", 12)),
    "split of a free size": ("y, v, u = Split <axis = 1, num_outputs = 3> (x)", {}, None),
    "mean": ("y = ReduceMean (x, n)", {"n": np.array([-1])}, ("b", "s", 1)),
    "sum without the axis": ("y = ReduceSum <keepdims = 0> (x, n)", {"n": np.array([1])}, ("b", 24)),
    "rows of a table": ("h = Shape (x) y = Gather (e, h)", {"e": normal(30, 5)}, (3, 5)),
    "range": ("h = Shape <start = 1, end = 2> (x) k = Squeeze (h) y = Range (a, k, o)",
              {"a": np.array(0), "o": np.array(1)}, ("s",)),
    "range of a sum": ("""h = Shape <start = 1, end = 2> (x) g = Shape <start = 1, end = 2> (z) i = Add (g, h)
        k = Squeeze (i) y = Range (a, k, o)""", {"a": np.array(0), "o": np.array(1)}, ("(s)+(t)",)),
    "range from 1": ("h = Shape <start = 1, end = 2> (x) k = Squeeze (h) y = Range (o, k, o)",
                     {"o": np.array(1)}, None),
    "places in a mask": ("y = GatherND (x, e)", {"e": np.zeros((5, 2), I64)}, (5, 24)),
    "a slice of a shape": ("""h = Shape (m) k = Slice (h, p, q) l = Gather (h, o) n = Concat <axis = 0> (l, k)
        y = Expand (e, n)""", {"p": np.array([-2]), "q": np.array([2**31]), "o": np.array([0]),
                               "e": normal(1, 1, 1)}, ("b", "s", "t")),
    "an operator that is not known": ("p = Trilu (x) y = Neg (p)", {}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_sizes_are_those_of_a_run(case: str) -> None:
    body, constants, expected = BODIES[case]
    model = model_of(f"main ({X}) => (y) {{ {body} }}", opset=18, **constants)
    sizes = Sizes(model)
    outputs = [node.outputs[0] for node in model.graph]
    if expected is not None:
        assert sizes.shape(outputs[-1]) == expected
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    feeds = {"x": normal(2, 3, 24), "z": normal(2, 4, 24), "m": normal(2, 1, 3, 4)}
    for value, got in zip(outputs, run_without_library(model, feeds), strict=True):
        shape, content = sizes.shape(value), sizes.content(value)
        if shape is not None:
            assert _in_this_run(shape, got.shape) == list(got.shape)
        if content is not None:
            assert _in_this_run(content, got.ravel().tolist()) == got.ravel().tolist()


def _in_this_run(dims: Dims, found: Sequence[int]) -> list[int]:
    return [_number(dim, number) for dim, number in zip(dims, found, strict=True)]


def _number(dim: int | str, otherwise: int) -> int:
    """A symbol's value in this run; one that is not known may be anything."""
    if isinstance(dim, int):
        return dim
    if dim.startswith("?"):
        return int(otherwise)
    return sum(int(f"{sign}{FREE[name]}") for sign, name in re.findall(r"([+-]?)\(?(\w+)\)?", dim))


def test_inputs_without_names_for_their_sizes_equal_nothing_else() -> None:
    model = model_of("main (float[?, 4] x, float[?, 4] z) => (y) { y = Concat <axis = 1> (x, z) }")
    sizes = Sizes(model)
    x, z = (sizes.shape(value) for value in model.graph.inputs)
    assert x is not None
    assert z is not None
    assert x[0] != z[0]


def test_noted_shapes_of_inner_values_are_not_believed() -> None:
    model = model_of("main (float[b, 4] x) => (float[b, 4] y) <float[7, 4] u> { u = Trilu (x) y = Neg (u) }")
    assert Sizes(model).shape(model.graph[1].outputs[0]) is None


def test_a_constant_that_can_be_fed_is_no_number() -> None:
    model = model_of("main (float[b, 4] x, int64[1] t0) => (y) { y = Reshape (x, t0) }", t0=np.array([-1]))
    assert Sizes(model).content(model.graph.inputs[1]) is None


@pytest.mark.parametrize(
    ("dims", "expected"), [((2, 3), 5), (("s", 0), "s"), (("t", "s"), "(s)+(t)"), (("s", 2), "(s)+(2)")]
)
def test_sums_of_sizes_do_not_depend_on_the_order(dims: Dims, expected: int | str) -> None:
    assert total(dims) == total(dims[::-1]) == expected


def test_a_size_that_cannot_be_known_is_a_symbol_of_its_own() -> None:
    result = ir.Value(name="y")
    assert broadcast([("s",), ("t",)], result) == ("?y.0",)
    assert reshaped(("b", "s", 24), (-1, 48), False, result) == ("?y.0", 48)
    assert reshaped(("b", 24), (-1, 0, 0), False, result) is None  # no third axis to keep


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        (("b", "s", 64), ("b", "s", 4, 16), [0, 0, 4, 16]),
        (("b", "s", 4, 16), ("b", "s", 64), [0, 0, 64]),
        (("b", "s", 4, 16), ("?y.0", 16), [-1, 16]),
        (("b", "s"), ("s", "b"), None),  # two sizes move
        (("b", 0), ("b", 0, 4), None),  # a zero would mean: as it was
    ],
)
def test_targets_keep_what_stays_in_place(before: Dims, after: Dims, target: list[int] | None) -> None:
    assert target_of(before, after) == target
