# SPDX-License-Identifier: Apache-2.0
"""Small good files of every kind that is read, as the project's own writers (or foreign ones) write them.

``PYTHONPATH=tests python -m fuzz.seeds FOLDER`` writes what fuzzers start from: ``FOLDER/readers`` for
Python; ``FOLDER/export`` and files that fit its data, in ``FOLDER/corpus_model``, for the reader in C;
``FOLDER/decoder`` and ``FOLDER/corpus_decoder`` for the decoder.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

import bcq
from bcq import contract
from bcq.adapters.adapter import Adapter, Alphas
from bcq.adapters.slots import DENSE, Slot, Slots
from bcq.exporting.write import write_model
from bcq.files import base
from bcq.files.manifest import write_manifest
from bcq.files.safetensors_write import SafetensorsWriter
from bcq.packing import PackedWeight, pack
from foreign import Grid, gptq
from fuzz import decoder_seeds
from graphs import model_of, normal
from nodes import among_planes, attributes, random_weight

MATRIX = "h.0.weight"
ROWS, INPUTS = 20, 72
_LAYERS = """graph (float[n, 64] x) => (float[n, 20] y) {
    h = MatMul (x, first)
    r = Relu (h)
    y = Gemm <transB = 1> (r, second, bias)
}"""
_REQUEST = {
    "model": "m", "prompt": ["a", "b"], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3,
    "temperature": 0.5, "stop": ["x"], "stream": True, "stream_options": {"include_usage": True}, "n": 1,
    "seed": 7, "top_p": 0.9,
}  # fmt: skip
_GENAI: dict[str, dict[str, Any]] = {
    "model": {"context_length": 64, "vocab_size": 20, "eos_token_id": [1, 2], "type": "gpt2"},
    "search": {"past_present_share_buffer": True},
}
_TOKENIZER = {
    "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    "eos_token": {"content": "</s>"}, "bos_token": "<s>",
}  # fmt: skip


def make(root: Path) -> None:
    """One folder a kind; together a few kilobytes but for the export's data."""
    _model(root / "model")
    _shards(root / "shards")
    made = _base(root / "base")
    alphas = {MATRIX: Alphas(np.ones((ROWS, 3), np.float16))}
    Adapter("task", made.base_hash, alphas, {"h.0.bias": np.ones(4, np.float32)}).save(root / "adapter")
    _lora(root / "lora")
    _slots(root / "slots", made.base_hash)
    _gptq(root / "gptq")
    export(root / "graph")
    _texts(root / "texts")


def export(folder: Path) -> None:
    """A real export of two matrices, each of them with parts inside and beside the graph's file."""
    source = folder.parent / f"{folder.name}-source"
    source.mkdir(parents=True)
    model = model_of(_LAYERS, first=normal(64, 96), second=normal(20, 96), bias=normal(20))
    write_model(model, source / "in.onnx")
    bcq.export(source / "in.onnx", folder, bits=2, method="greedy", group_size=32)
    shutil.rmtree(source)


def corpus(folder: Path, exported: Path) -> None:
    """Models for the C reader: the export itself, the same without a data file, and one of fewer planes."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(exported / "model.onnx", folder / "external")
    onnx.save(onnx.load(exported / "model.onnx"), folder / "inside")
    nested = among_planes(random_weight(ROWS, INPUTS, 2, INPUTS, offset=True), 4)
    (folder / "nested").write_bytes(_of_one_node(nested).SerializeToString())


def _of_one_node(packed: PackedWeight) -> onnx.ModelProto:
    names = [f"w.{port.name}" for port in contract.MATMUL.inputs[1:]]
    values = attributes(contract.MATMUL, packed)
    node = helper.make_node(contract.MATMUL.name, ["A", *names], ["Y"], domain=contract.DOMAIN, **values)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", packed.inputs])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, f"w.{part}") for part, array in packed.tensors().items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(contract.DOMAIN, contract.OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _model(folder: Path) -> None:
    folder.mkdir(parents=True)
    tensors = {MATRIX: normal(8, 4), "h.0.bias": normal(4).astype(np.float16), "ids": np.arange(3)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "vocab_size": 8}))


def _shards(folder: Path) -> None:
    folder.mkdir()
    held = {MATRIX: "model-1.safetensors", "h.0.bias": "model-2.safetensors"}
    for name, file in held.items():
        save_file({name: normal(4)}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": held}))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def _base(folder: Path) -> base.QuantizedBase:
    """A base of one matrix that serves 3 and 2 bits, and one dense tensor."""
    folder.mkdir()
    packed = pack(random_weight(ROWS, INPUTS, 3, 32, offset=True))
    fewer = pack(random_weight(ROWS, INPUTS, 2, 64, offset=True)).tensors()
    matrix = base.BaseMatrix(
        stored=MATRIX, name=f"transformer.{MATRIX}", kind="linear", rows=ROWS, inputs=INPUTS, bits=3,
        group_size=32, offset=True, transposed=False, tied=("head",), code_hash=packed.code_hash(),
        also=((2, 64),),
    )  # fmt: skip
    stored = {f"{MATRIX}.{part}": array for part, array in packed.tensors().items()}
    stored |= {f"{matrix.prefix(2)}.{part}": array for part, array in fewer.items() if part != "codes"}
    with SafetensorsWriter(folder / "model.safetensors", matrix.specs(), base.metadata([matrix])) as writer:
        for name in matrix.specs():
            writer.write(name, stored[name].tobytes())
    section = {"quant_method": "bcq", "bits": 3, "also_bits": [2]}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "quantization_config": section}))
    write_manifest(folder, ["bcq", "quantize"], 0)
    return base.QuantizedBase.open(folder)


def _lora(folder: Path) -> None:
    folder.mkdir()
    prefix = "base_model.model.h.0."
    tensors = {f"{prefix}lora_A.weight": normal(2, 8), f"{prefix}lora_B.weight": normal(4, 2)}
    save_file(tensors | {f"{prefix}bias": normal(4)}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"h.0": 3}, "bias": "all"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _slots(folder: Path, base_hash: str) -> None:
    (folder / "adapters").mkdir(parents=True)
    default = np.ones((2, 3, 16), np.float16)
    shared = Slot("qk.alpha_1", "alpha_1", (("q", 16), ("k", 16)), "float16", default.shape, default)
    Slots(base_hash, (shared, Slot("bias", DENSE, (("bias", 4),), "float32", (4,)))).write(
        folder / "adapters"
    )


def _gptq(folder: Path) -> None:
    folder.mkdir()
    tensors = {f"h.0.{part}": array for part, array in gptq(Grid(16, 64)).items()}
    save_file(tensors, folder / "model.safetensors")
    section = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "quantization_config": section}))


def _texts(folder: Path) -> None:
    """Files that are read line by line, requests, and configurations beside a tokenizer."""
    folder.mkdir()
    (folder / "request").write_text(json.dumps(_REQUEST))
    (folder / "genai_config.json").write_text(json.dumps(_GENAI))
    seq2seq = {"model": {**_GENAI["model"], "type": "encoder-decoder", "decoder_start_token_id": 0}}
    (folder / "encoder_decoder_config.json").write_text(json.dumps(seq2seq))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER))
    line = json.dumps({"text1": "a", "text2": "b", "score": 3.5, "label": "x", "text": "ab"})
    (folder / "pairs.jsonl").write_text(f"{line}\n\n{line}\n")
    (folder / "pairs.tsv").write_text("one\ttwo\t1.5\n0.5\tthree\tfour\n")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for name in ("export", "readers"):
        shutil.rmtree(target / name, ignore_errors=True)
    make(target / "readers")
    export(target / "export")
    corpus(target / "corpus_model", target / "export")
    decoder_seeds.write(target / "decoder", target / "corpus_decoder")
