# SPDX-License-Identifier: Apache-2.0
"""Attention takes a scaled query and joined Q, K and V itself; where anything else reads them, nodes stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bcq.passes.fold_into_attention import pack_attention, scale_in_attention
from bcq.passes.work import Work
from bcq.progress import SILENT
from graphs import Feeds, Quick, model_of, normal, op_types, run_without_library

HEADS, GROUPS, SIZE, TOKENS = 4, 2, 8, 5
WIDTH, SHARED = HEADS * SIZE, GROUPS * SIZE
ATTENTION = f"""com.microsoft.GroupQueryAttention
    <num_heads = {HEADS}, kv_num_heads = {GROUPS}, scale = 0.25>"""


def attention(nodes: str, outputs: str = "float[1, s, 32] y") -> ir.Model:
    """Joined activations ``x [1, s, Q + K + V]``, split, and whatever `nodes` say, which give q, k and v."""
    text = f"""main (float[1, s, {WIDTH + 2 * SHARED}] x, float[1, {GROUPS}, 0, {SIZE}] past, int32[1] last,
        int32 total) => ({outputs}) {{
        {nodes}
    }}"""
    return model_of(
        text,
        opset=21,
        sizes=np.array([WIDTH, SHARED, SHARED], np.int64),
        val_1=np.array(0.5, np.float32),
        learned=np.array(0.5, np.float32),
    )


FEEDS: Feeds = {
    "x": normal(1, TOKENS, WIDTH + 2 * SHARED),
    "past": np.zeros((1, GROUPS, 0, SIZE), np.float32),
    "last": np.array([TOKENS - 1], np.int32),
    "total": np.array(TOKENS, np.int32),
}
SPLIT = "q, k, v = Split <axis = 2> (x, sizes)"
ATTEND = f"y, pk, pv = {ATTENTION} (q, k, v, past, past, last, total)"


def changed(nodes: str, outputs: str = "float[1, s, 32] y") -> list[str]:
    """Types of the nodes after both passes, which must not change a bit of the result."""
    before, after = attention(nodes, outputs), attention(nodes, outputs)
    for step in (scale_in_attention, pack_attention):
        step(after, Work(Quick(), SILENT))
    expected = run_without_library(before, FEEDS)
    for got, wanted in zip(run_without_library(after, FEEDS), expected, strict=True):
        assert (got.shape, got.tobytes()) == (wanted.shape, wanted.tobytes())
    return op_types(after)


def test_a_split_of_joined_activations_becomes_a_packed_query() -> None:
    assert changed(f"{SPLIT}\n{ATTEND}") == ["GroupQueryAttention"]


def test_a_query_scaled_by_a_power_of_two_keeps_every_bit_when_attention_scales_it() -> None:
    scaled = f"{SPLIT}\nscaled = Mul (q, val_1)\n{ATTEND.replace('(q,', '(scaled,')}"
    assert changed(scaled) == ["GroupQueryAttention"]


def test_a_scale_that_is_a_parameter_stays() -> None:
    scaled = f"{SPLIT}\nscaled = Mul (q, learned)\n{ATTEND.replace('(q,', '(scaled,')}"
    assert changed(scaled) == ["Split", "Mul", "GroupQueryAttention"]


@pytest.mark.parametrize("part", ["q", "k"])
def test_parts_that_another_node_reads_stay_split(part: str) -> None:
    read = f"{SPLIT}\n{ATTEND}\nother = Relu ({part})"
    width = WIDTH if part == "q" else SHARED
    kept = changed(read, f"float[1, s, 32] y, float[1, s, {width}] other")
    assert kept == ["Split", "GroupQueryAttention", "Relu"]


def test_parts_in_another_order_stay_split() -> None:
    turned = f"{SPLIT}\n{ATTEND.replace('k, v, past', 'v, k, past')}"
    assert changed(turned) == ["Split", "GroupQueryAttention"]
