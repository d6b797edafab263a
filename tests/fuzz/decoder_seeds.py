# SPDX-License-Identifier: Apache-2.0
"""Tiny decoders of packed matrices with everything inside the file: what the decoder's fuzzer starts from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from bcq import contract
from bcq.packing import PackedWeight, pack
from nodes import attributes, random_weight

VOCABULARY, WIDTH = 20, 32  # two heads of 16
_HEAD = """
    present = Shape <start = 1, end = 2> (attention_mask)
    total = Squeeze (present)
    sums = ReduceSum <keepdims = 0> (attention_mask, one)
    last = Sub (sums, one)
    seqlens = Cast <to = 6> (last)
    total_length = Cast <to = 6> (total)
"""
_TAIL = """
    first = Neg (logits_to_keep)
    kept = Slice (normed, first, end, one)
"""
_GPT2 = """
    norm = LayerNormalization <axis = -1> (tokens, scale, scale)
    joined = Concat <axis = -1> (norm, norm, norm)
    y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2>
        (joined, "", "", past_keys, past_values, seqlens, total_length)
    cube = Pow (y, three)
    tanh = Tanh (cube)
    normed = Add (tanh, tokens)
"""
_LLAMA = """
    wide = Unsqueeze (position_ids, two)
    positions = Cast <to = 1> (wide)
    angles = Mul (positions, frequencies)
    cosines = Cos (angles)
    sines = Sin (angles)
    cosine = Reshape (cosines, flat)
    sine = Reshape (sines, flat)
    count = Shape <start = 1, end = 2> (input_ids)
    size = Squeeze (count)
    place = Range (zero, size, step)
    places = Unsqueeze (place, zeros)
    square = Pow (tokens, exponent)
    mean = ReduceMean (square, minus)
    root = Sqrt (mean)
    norm = Div (tokens, root)
    gate = Sigmoid (norm)
    query, key = Split <axis = -1> (gate, sizes)
    both = Concat <axis = -1> (query, query)
    q = com.microsoft.RotaryEmbedding (both, places, cosine, sine)
    k = com.microsoft.RotaryEmbedding (key, places, cosine, sine)
    normed = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1, local_window_size = 3>
        (q, k, key, past_keys, past_values, seqlens, total_length)
"""
_INTEGERS = {
    "one": [1],
    "two": [2],
    "end": [2**62],
    "flat": [-1, 8],
    "zeros": [0],
    "minus": [-1],
    "sizes": [16, 16],
}
_SCALARS = {"zero": 0, "step": 1}
_FLOATS = {"three": 3.0, "exponent": 2.0}


def write(folder: Path, corpus: Path) -> None:
    """``folder/model.onnx``, a healthy decoder, and several of them in a folder that fuzzing begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    onnx.save(decoder(_GPT2, 2, "float"), corpus / "gpt2")
    onnx.save(decoder(_LLAMA, 1, "float"), corpus / "llama")
    onnx.save(decoder(_GPT2, 2, "int8"), corpus / "int8")
    shutil.copyfile(corpus / "gpt2", folder / "model.onnx")


def decoder(body: str, heads: int, kind: str) -> onnx.ModelProto:
    """A decoder of one layer."""
    cache = f"{kind}[1, {heads}, P, 16]"
    text = f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "bcq" : 1]>
    decoder (int64[1, S] input_ids, int64[1, T] attention_mask, int64[1, S] position_ids,
        int64[1] logits_to_keep, {cache} past_keys, {cache} past_values)
        => (float[1, L, {VOCABULARY}] logits)
    {{ {_HEAD} {body} {_TAIL} }}"""
    model = parser.parse_model(text)
    packed = pack(random_weight(VOCABULARY, WIDTH, 2, 32, offset=True))
    nodes = model.graph.node
    nodes.insert(0, _packed(contract.GATHER, ["input_ids"], "tokens", packed))
    nodes.append(_packed(contract.MATMUL, ["kept"], "logits", packed))
    constants = {f"w.{part}": array for part, array in packed.tensors().items()}
    constants |= {name: np.array(values, np.int64) for name, values in (_INTEGERS | _SCALARS).items()}
    constants |= {name: np.array(value, np.float32) for name, value in _FLOATS.items()}
    constants |= {
        "scale": np.ones(WIDTH, np.float32),
        "frequencies": np.linspace(0.1, 1, 8, dtype=np.float32),
    }
    if kind == "int8":
        _with_scales(next(node for node in nodes if node.op_type == "GroupQueryAttention"))
        constants["step_of_cache"] = np.array([0.02], np.float32)
    constants["logits_to_keep"] = np.zeros(1, np.int64)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return model


def _packed(op: contract.Op, inputs: list[str], output: str, packed: PackedWeight) -> onnx.NodeProto:
    names = [f"w.{port.name}" for port in op.inputs[1:]]
    return helper.make_node(
        op.name, [*inputs, *names], [output], domain=contract.DOMAIN, **attributes(op, packed)
    )


def _with_scales(attention: onnx.NodeProto) -> None:
    attention.input.extend(["", "", "", "", "", "step_of_cache", "step_of_cache"])
    values = {"kv_cache_bit_width": 8, "k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR"}
    attention.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())
