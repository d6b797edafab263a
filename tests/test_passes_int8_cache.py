# SPDX-License-Identifier: Apache-2.0
"""A cache of int8: attention on it is attention on the rounded keys and values, whatever the scales are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bcq.errors import BcqError, UsageError
from bcq.export import export
from bcq.passes.int8_cache import channel_scales, int8_cache, is_uneven, one_scale
from graphs import model_of, normal, run_without_library

HEADS, GROUPS, SIZE, TOKENS = 4, 2, 16, 6
SHAPE = (1, TOKENS, GROUPS * SIZE)
TEXT = f"""main (float[1, s, {HEADS * SIZE}] q,
    float[1, s, {GROUPS * SIZE}] k, float[1, s, {GROUPS * SIZE}] v,
    float[1, {GROUPS}, p, {SIZE}] pk, float[1, {GROUPS}, p, {SIZE}] pv, int32[1] last, int32 total)
    => (float[1, s, {HEADS * SIZE}] y, float[1, {GROUPS}, t, {SIZE}] nk, float[1, {GROUPS}, t, {SIZE}] nv) {{
    y, nk, nv = com.microsoft.GroupQueryAttention
        <num_heads = {HEADS}, kv_num_heads = {GROUPS}, scale = 0.25> (q, k, v, pk, pv, last, total)
}}"""
Array = NDArray[np.float32]


def attended(model: ir.Model, keys: Array, values: Array) -> list[NDArray[Any]]:
    """Attention without past: its result, and the new cache."""
    kind = np.int8 if model.graph.inputs[3].dtype == ir.DataType.INT8 else np.float32
    past = np.zeros((1, GROUPS, 0, SIZE), kind)
    feeds = {"q": normal(1, TOKENS, HEADS * SIZE), "k": keys, "v": values, "pk": past, "pv": past}
    lengths = {"last": np.array([TOKENS - 1], np.int32), "total": np.array(TOKENS, np.int32)}
    return run_without_library(model, {**feeds, **lengths})


def by_heads(states: Array) -> Array:
    heads: Array = states.reshape(1, TOKENS, GROUPS, SIZE).swapaxes(1, 2)
    return heads


@pytest.mark.parametrize("outlier", [1.0, 50.0])
def test_attention_on_int8_is_attention_on_rounded_keys_and_values(outlier: float) -> None:
    keys, values = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    keys[..., 3] *= outlier
    # A little more than the largest value, which would else lie right between two codes, 63 and 64.
    largest = {
        name: 1.01 * np.abs(by_heads(states)).max(axis=(0, 2))
        for name, states in (("pk", keys), ("pv", values))
    }
    model = model_of(TEXT, opset=21)
    int8_cache(model, largest)
    node = model.graph[0]
    kind = node.attributes["k_quant_type"].as_string()
    assert kind == node.attributes["v_quant_type"].as_string()
    assert kind == ("PER_TENSOR" if outlier == 1 else "PER_CHANNEL")
    scale = one_scale if outlier == 1 else channel_scales
    rounded = []
    for states, name in ((keys, "pk"), (values, "pv")):
        step = scale(largest[name])
        codes = np.round(by_heads(states) / step)
        rounded.append((codes * step).swapaxes(1, 2).reshape(SHAPE).astype(np.float32))
    got, new_keys, _ = attended(model, keys, values)
    expected, *_ = attended(model_of(TEXT, opset=21), *rounded)
    assert new_keys.dtype == np.int8
    # Both sum in float32, in another order: 2^-24 of each of some hundred terms.
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_what_is_larger_than_anything_seen_is_cut_and_does_not_wrap() -> None:
    keys = normal(*SHAPE, seed=1)
    model = model_of(TEXT, opset=21)
    int8_cache(model, {name: np.ones((GROUPS, SIZE), np.float32) for name in ("pk", "pv")})
    keys[0, 0, 0], keys[0, 1, 0] = 100.0, -100.0
    _, codes, _ = attended(model, keys, keys)
    assert codes[0, 0, 0, 0] == 127
    assert codes[0, 0, 1, 0] in (-127, -128)


def test_channels_get_scales_of_their_own_only_where_one_scale_would_drown_most_of_them() -> None:
    even = np.linspace(1, 3, GROUPS * SIZE, dtype=np.float32).reshape(GROUPS, SIZE)
    assert not is_uneven(even)
    even[0, 0] = 20
    assert is_uneven(even)


def test_scales_are_never_zero() -> None:
    silent = np.zeros((GROUPS, SIZE), np.float32)
    assert one_scale(silent) > 0
    assert channel_scales(silent).min() > 0
    silent[0, 0] = 8
    assert channel_scales(silent).min() > 0


def test_what_has_no_such_cache_is_refused_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="making a model needs it")
    from tiny_models import save

    with pytest.raises(UsageError, match="kv cache: got 'fp8', expected one of float, int8"):
        export(tmp_path, tmp_path / "out", kv_cache="fp8")
    with pytest.raises(UsageError, match="needs fused attention"):
        export(tmp_path, tmp_path / "out", kv_cache="int8", attention="plain")
    with pytest.raises(UsageError, match="an encoder has no cache"):
        export(save("bert", tmp_path / "bert"), tmp_path / "out", kv_cache="int8")
    (tmp_path / "graph.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no genai_config\.json"):
        export(tmp_path / "graph.onnx", tmp_path / "out", kv_cache="int8")
    with pytest.raises(BcqError, match="its heads have 18 elements"):
        export(save("llama", tmp_path / "llama"), tmp_path / "out", kv_cache="int8")
    assert not (tmp_path / "out").exists()
