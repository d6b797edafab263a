# SPDX-License-Identifier: Apache-2.0
"""Bad checkpoints: each turns a good model folder into one that must be refused and leave nothing."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MATRIX = "transformer.h.0.attn.c_attn.weight"
BIAS = "transformer.ln_f.bias"
CANARY = "canary"
Attack = Callable[[Path], None]


@dataclass(frozen=True)
class Bad:
    """One bad checkpoint.

    Attributes:
        attack: makes it from a good one.
        code: of the error.
        names: what the message must name: the tensor, file or setting that is wrong.
    """

    attack: Attack
    code: str
    names: str


class Payload:
    """Unpickled, it writes a file: proof that code ran."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (open, (self.canary, "w"))


def change(name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Attack:
    """Replaces one tensor."""

    def attack(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        save_file({**tensors, name: edit(tensors[name].clone()).contiguous()}, folder / SINGLE)

    return attack


def set_to(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """One element, the last, gets a value."""

    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return edit


def without(name: str) -> Attack:
    """A tensor is missing."""

    def attack(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        del tensors[name]
        save_file(tensors, folder / SINGLE)

    return attack


def configured(**changes: Any) -> Attack:
    """Settings of config.json are others."""

    def attack(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return attack


def text_of(file: str, text: str | bytes) -> Attack:
    """A file has another content."""

    def attack(folder: Path) -> None:
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    return attack


def cut(share: float) -> Attack:
    """The weights are cut short."""

    def attack(folder: Path) -> None:
        whole = (folder / SINGLE).read_bytes()
        (folder / SINGLE).write_bytes(whole[: int(len(whole) * share)])

    return attack


def header(edit: Callable[[dict[str, Any]], object]) -> Attack:
    """The header says something else; the data stay."""

    def attack(folder: Path) -> None:
        whole = (folder / SINGLE).read_bytes()
        length = int.from_bytes(whole[:8], "little")
        described = json.loads(whole[8 : 8 + length])
        edit(described)
        text = json.dumps(described).encode()
        (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])

    return attack


def doubled_name(folder: Path) -> None:
    whole = (folder / SINGLE).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    described = json.loads(whole[8 : 8 + length])
    again = json.dumps({MATRIX: described[MATRIX]})[1:-1].encode()
    text = whole[8 : 8 + length].rstrip()[:-1] + b"," + again + b"}"
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


def header_length(length: int) -> Attack:
    """The file begins with another length of its header."""

    def attack(folder: Path) -> None:
        whole = (folder / SINGLE).read_bytes()
        (folder / SINGLE).write_bytes(struct.pack("<Q", length) + whole[8:])

    return attack


def shards(folder: Path) -> dict[str, str]:
    """Cuts the checkpoint into two shards; which tensor is where."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    halves = {
        "model-1.safetensors": names[: len(names) // 2],
        "model-2.safetensors": names[len(names) // 2 :],
    }
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in halves.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def cut_shard(folder: Path) -> None:
    shards(folder)
    whole = (folder / "model-2.safetensors").read_bytes()
    (folder / "model-2.safetensors").write_bytes(whole[:-100])


def missing_shard(folder: Path) -> None:
    shards(folder)
    (folder / "model-2.safetensors").unlink()


def tensor_in_two_shards(folder: Path) -> None:
    weight_map = shards(folder)
    name = next(name for name, file in weight_map.items() if file == "model-1.safetensors")
    held = load_file(folder / "model-2.safetensors")
    save_file({**held, name: torch.zeros(3)}, folder / "model-2.safetensors")


def index_of_a_tensor_elsewhere(folder: Path) -> None:
    weight_map = shards(folder)
    name = next(name for name, file in weight_map.items() if file == "model-1.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {**weight_map, name: "model-2.safetensors"}}))


def index_that_leaves(folder: Path) -> None:
    weight_map = shards(folder)
    (folder / "model-1.safetensors").rename(folder.parent / "model-1.safetensors")
    moved = {n: f if f[6] == "2" else f"../{f}" for n, f in weight_map.items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": moved}))


def index_of(shard: str) -> Attack:
    """The index names another file."""

    def attack(folder: Path) -> None:
        weight_map = shards(folder)
        (folder / INDEX).write_text(json.dumps({"weight_map": {**weight_map, MATRIX: shard}}))

    return attack


def index_without_a_tensor(folder: Path) -> None:
    weight_map = shards(folder)
    del weight_map[MATRIX]
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def only_a_pickle(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder.parent / CANARY)))


def pickle_under_another_name(folder: Path) -> None:
    (folder / SINGLE).write_bytes(pickle.dumps(Payload(folder.parent / CANARY)))


def remote_code(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text(f"open({str(folder.parent / CANARY)!r}, 'w')\n")
    configured(auto_map={"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"})(folder)


def remote_code_of_a_new_type(folder: Path) -> None:
    remote_code(folder)
    configured(model_type="evil")(folder)


def tokenizer_code(folder: Path) -> None:
    (folder / "tokenization_evil.py").write_text(f"open({str(folder.parent / CANARY)!r}, 'w')\n")
    text = json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}})
    (folder / "tokenizer_config.json").write_text(text)


CHECKPOINTS: dict[str, Bad] = {
    "cut in half": Bad(cut(0.5), "E103", SINGLE),
    "cut in its header": Bad(cut(0.001), "E103", SINGLE),
    "empty": Bad(text_of(SINGLE, b""), "E103", SINGLE),
    "cut shard": Bad(cut_shard, "E103", "model-2.safetensors"),
    "missing shard": Bad(missing_shard, "E107", "model-2.safetensors"),
    "wrong shape": Bad(change(MATRIX, lambda t: t[:, 1:]), "E103", MATRIX),
    "transposed": Bad(change(MATRIX, lambda t: t.T), "E103", MATRIX),
    "NaN in a matrix": Bad(change(MATRIX, set_to(float("nan"))), "E106", MATRIX),
    "infinity in a matrix": Bad(change(MATRIX, set_to(float("inf"))), "E106", MATRIX),
    "NaN in a bias": Bad(change(BIAS, set_to(float("nan"))), "E106", BIAS),
    "NaN in bfloat16": Bad(change(BIAS, lambda t: set_to(float("nan"))(t.bfloat16())), "E106", BIAS),
    "beyond float32": Bad(change(BIAS, lambda t: set_to(1e300)(t.double())), "E106", BIAS),
    "beyond float16 alphas": Bad(change(MATRIX, lambda t: t * 1e9), "E106", MATRIX),
    "integers for weights": Bad(change(BIAS, lambda t: t.int()), "E102", BIAS),
    "missing matrix": Bad(without(MATRIX), "E107", MATRIX.removeprefix("transformer.")),
    "missing bias": Bad(without(BIAS), "E107", BIAS.removeprefix("transformer.")),
    "tensor in two shards": Bad(tensor_in_two_shards, "E103", "two shards"),
    "index of a tensor elsewhere": Bad(index_of_a_tensor_elsewhere, "E107", "model-2.safetensors"),
    "index that leaves the folder": Bad(index_that_leaves, "E108", "../model-1.safetensors"),
    "index of a name that no disk holds": Bad(index_of("\u00e4" * 200 + ".safetensors"), "E108", INDEX),
    "index of half a character": Bad(index_of("\ud800.safetensors"), "E108", INDEX),
    "index without a tensor": Bad(index_without_a_tensor, "E107", MATRIX.removeprefix("transformer.")),
    "index that is none": Bad(lambda f: (shards(f), text_of(INDEX, "[]")(f))[1], "E102", INDEX),
    "pickle": Bad(only_a_pickle, "E104", "pytorch_model.bin"),
    "pickle under another name": Bad(pickle_under_another_name, "E103", SINGLE),
    "remote code": Bad(remote_code, "E105", "auto_map"),
    "remote code of a new type": Bad(remote_code_of_a_new_type, "E105", "auto_map"),
    "tokenizer with code": Bad(tokenizer_code, "E105", "tokenizer_config.json"),
    "overlapping tensors": Bad(header(lambda h: h[BIAS].update(data_offsets=[0, 256])), "E103", "begins at"),
    "tensor past the end": Bad(
        header(lambda h: h[BIAS].update(data_offsets=[o + 10**9 for o in h[BIAS]["data_offsets"]])),
        "E103", "begins at",
    ),
    "shape that does not fit its bytes": Bad(header(lambda h: h[BIAS].update(shape=[65])), "E103", BIAS),
    "shape whose product wraps": Bad(header(lambda h: h[BIAS].update(shape=[2**32, 2**32])), "E103", BIAS),
    "unknown type": Bad(header(lambda h: h[BIAS].update(dtype="F31")), "E103", BIAS),
    "huge header": Bad(header_length(2**40), "E103", SINGLE),
    "header of 2^64 - 1": Bad(header_length(2**64 - 1), "E103", SINGLE),
    "header of zero": Bad(header_length(0), "E103", SINGLE),
    "name twice in a header": Bad(doubled_name, "E103", "twice"),
    "config that is no JSON": Bad(text_of("config.json", "{"), "E102", "config.json"),
    "config that is no object": Bad(text_of("config.json", "[]"), "E102", "config.json"),
    "config that is no text": Bad(text_of("config.json", b"\xff\xfe\x00"), "E102", "config.json"),
    "config that nests deep": Bad(text_of("config.json", '{"a":' * 100_000), "E102", "config.json"),
    "config with NaN": Bad(configured(layer_norm_epsilon=float("nan")), "E102", "config.json"),
    "config with an infinite size": Bad(configured(n_embd=float("inf")), "E102", "config.json"),
    "config with a fraction": Bad(configured(n_layer=1.5), "E102", "config.json"),
    "config with text for a size": Bad(configured(n_embd="64"), "E102", "config.json"),
    "config with a billion layers": Bad(configured(n_layer=10**9), "E102", "n_layer"),
    "config with 2^62 positions": Bad(configured(n_positions=2**62), "E102", "config.json"),
    "config with two billion positions": Bad(configured(n_positions=2**31 - 1), "E602", "config.json"),
    "config with negative sizes": Bad(configured(n_embd=-64), "E102", "config.json"),
    "config without a type": Bad(configured(model_type=None), "E102", "model_type"),
    "config of an unknown type": Bad(configured(model_type="evil"), "E401", "evil"),
    "config of a class that is no model": Bad(configured(architectures=["os"]), "E401", "os"),
    "config of more layers": Bad(configured(n_layer=3), "E107", "h.2."),
    "config of fewer layers": Bad(configured(n_layer=1), "E107", "h.1."),
    "tokenizer that is no JSON": Bad(text_of("tokenizer.json", "{"), "E102", "tokenizer.json"),
    "tokenizer that is no object": Bad(text_of("tokenizer_config.json", "3"), "E102", "tokenizer_config"),
    "tokenizer that is no text": Bad(text_of("tokenizer.json", b"\xff"), "E102", "tokenizer.json"),
}  # fmt: skip
