# SPDX-License-Identifier: Apache-2.0
"""GGUF files for llama.cpp of a GPT-2 or Llama folder: float16 by the package gguf, the rest by llama.cpp."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.bench.end_to_end.engine_llama import library
from bcq.files.checkpoint import Checkpoint, read_config

# llama.cpp's names of whole files; each mixes formats of tensors as its authors found best.
FILE_TYPES = {"Q4_0": 2, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "TQ2_0": 37}
BITS = {"Q4_0": 4, "Q4_K_M": 4, "Q3_K_M": 3, "Q2_K": 2, "TQ2_0": 2}
ARCHITECTURES = {"GPT2LMHeadModel": "gpt2", "LlamaForCausalLM": "llama"}
_TURNED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")  # Conv1D holds [inputs, outputs]
_ROTATED = re.compile(r"\.([qk])_proj\.weight$")


def check_known(model: Path) -> None:
    """Raises ImportError or ValueError unless files of this model can be written here."""
    import_module("gguf")
    library()
    _architecture(read_config(model))


def _architecture(config: Mapping[str, Any]) -> str:
    name = next(iter(config.get("architectures") or []), "none")
    if name not in ARCHITECTURES:
        raise ValueError(f"GGUF files are written of {', '.join(ARCHITECTURES)} only, got {name}")
    return ARCHITECTURES[name]


def write_gguf(model: Path, file: Path) -> None:
    """Writes a model folder as float16 GGUF: no vocabulary, only its size.

    Raises:
        ImportError: when the package gguf is not installed.
        ValueError: for another architecture, or a tensor that GGUF has no name for.
    """
    gguf = import_module("gguf")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    kind = _architecture(read_config(model))
    writer = gguf.GGUFWriter(file, kind)
    _write_sizes(writer, config, kind)
    known = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    checkpoint = Checkpoint.open(model)
    for name in checkpoint.names():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"GGUF has no name for the tensor {name}")
        writer.add_tensor(found, _stored(name, checkpoint, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: Any, config: Any, kind: str) -> None:
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_file_type(1)  # LLAMA_FTYPE_MOSTLY_F16
    if kind == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    rotation = config.rope_parameters
    if rotation.get("rope_type", "default") != "default":
        raise ValueError(f"rope type {rotation['rope_type']} is not written")
    writer.add_rope_freq_base(float(rotation["rope_theta"]))


def _stored(name: str, checkpoint: Checkpoint, config: Any) -> NDArray[Any]:
    """A tensor as llama.cpp has it: float16 matrices ``[outputs, inputs]``, float32 vectors."""
    array = checkpoint.read(name)
    if array.ndim == 1:
        return array.astype(np.float32)
    if _TURNED.search(name):
        array = array.T
    rotated = _ROTATED.search(name)
    if rotated:
        heads = config.num_attention_heads if rotated[1] == "q" else config.num_key_value_heads
        array = interleaved(array, heads)
    return np.ascontiguousarray(array, dtype=np.float16)


def interleaved(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of each head from halves (as transformers rotates) to pairs (as llama.cpp does)."""
    half = array.shape[0] // heads // 2
    turned: NDArray[Any] = array.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape)
    return turned


def quantize_gguf(source: Path, file: Path, name: str, threads: int) -> None:
    """One of `FILE_TYPES` of a float16 file, by llama.cpp itself, without an importance matrix.

    Raises:
        ImportError: when llama-cpp-python is not installed.
        ValueError: when llama.cpp refuses.
    """
    options = library().llama_model_quantize_default_params()
    options.ftype, options.nthread = FILE_TYPES[name], threads
    status = library().llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(options))
    if status:
        raise ValueError(f"llama.cpp cannot make {name} of it (status {status})")
