# SPDX-License-Identifier: Apache-2.0
"""Opening a quantized base: what it holds, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from bcq.errors import BcqError
from bcq.files.base import METADATA_KEY, QuantizedBase
from bcq.files.checkpoint import SINGLE
from bcq.matrices.plan import QuantizeOptions
from bcq.quantize import quantize

NAME = "transformer.h.0.mlp.c_fc.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "base", QuantizeOptions(bits=2, group_size=32))
    return tmp_path / "base"


def refusal(folder: Path) -> BcqError:
    with pytest.raises(BcqError) as caught:
        QuantizedBase.open(folder)
    assert caught.value.code == "E109"
    return caught.value


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = (folder / SINGLE).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    described = json.loads(header["__metadata__"][METADATA_KEY])
    change(described)
    header["__metadata__"][METADATA_KEY] = json.dumps(described)
    text = json.dumps(header).encode()
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def test_the_reference_library_reads_the_same_tensors(folder: Path) -> None:
    packed = QuantizedBase.open(folder).packed(NAME)
    with safe_open(folder / SINGLE, "pt") as reference:
        for part, tensor in packed.tensors().items():
            stored = reference.get_tensor(f"{NAME}.{part}").numpy()
            assert stored.dtype == tensor.dtype
            assert stored.tobytes() == tensor.tobytes()


def test_the_base_hash_covers_all_codes_in_the_order_of_names(folder: Path) -> None:
    base = QuantizedBase.open(folder)
    joined = "".join(base.packed(name).code_hash() for name in base.names())
    assert base.base_hash == hashlib.sha256(joined.encode()).hexdigest()


def test_a_flipped_code_is_found_when_its_matrix_is_read(folder: Path) -> None:
    entry = QuantizedBase.open(folder).checkpoint.entry(f"{NAME}.codes")
    content = bytearray((folder / SINGLE).read_bytes())
    content[entry.offset] ^= 1
    (folder / SINGLE).write_bytes(content)
    with pytest.raises(BcqError, match=r"c_fc\.weight\.codes does not have the recorded hash") as caught:
        QuantizedBase.open(folder).packed(NAME)
    assert caught.value.code == "E109"


def test_a_dense_model_is_no_base(folder: Path) -> None:
    assert "no BCQ matrices" in refusal(folder.parent / "model").message


def test_a_newer_format_is_refused(folder: Path) -> None:
    rewrite(folder, lambda described: described.update(format_version=2))
    assert "format is version 2, layout 'tile16', expected 1" in refusal(folder).message


@pytest.mark.parametrize("change", [{"layout": "tile32"}, {"layout": None}, {"format_version": True}])
def test_another_layout_or_no_number_of_a_version_is_refused(folder: Path, change: dict[str, Any]) -> None:
    rewrite(folder, lambda described: described.update(change))
    assert "its format is version" in refusal(folder).message


def test_a_matrix_that_is_described_twice_is_refused(folder: Path) -> None:
    rewrite(folder, lambda described: described["matrices"].append(described["matrices"][0]))
    assert "twice" in refusal(folder).message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 0), ("bits", 9), ("bits", 3), ("bits", 2.0), ("bits", True), ("rows", 0), ("rows", -16),
        ("rows", 2**62), ("inputs", 0), ("inputs", 2**62), ("group_size", 0), ("group_size", 31),
        ("offset", True), ("offset", 1), ("tied", None), ("tied", "abc"),
        ("stored", 3), ("unknown", 1), ("code_hash", None),
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit_is_refused(folder: Path, field: str, value: Any) -> None:
    rewrite(folder, lambda described: described["matrices"][0].update({field: value}))
    refusal(folder)


def test_an_unknown_matrix_is_named(folder: Path) -> None:
    with pytest.raises(BcqError, match="no packed matrix 'x'"):
        QuantizedBase.open(folder).packed("x")
