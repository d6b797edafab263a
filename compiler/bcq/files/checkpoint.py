# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model folder: its configuration, and its tensors one at a time. No code in it is run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.errors import InputError
from bcq.files.inside import Stamp, inner_file, relative_name
from bcq.files.kinds import ONNX, PART, kind_of
from bcq.files.safetensors_read import Header, StoredTensor, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 100_000_000
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """An opened model folder.

    Attributes:
        folder: where it lies.
        config: content of ``config.json``.
        tensors: every stored tensor by its name in the checkpoint.
        metadata: free text metadata of the (first) safetensors file.
        stamps: what the files were when they were opened, for `bcq.files.inside.check_unchanged`.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    stamps: tuple[Stamp, ...] = ()

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Reads configuration and headers; tensors stay on disk.

        Raises:
            InputError: E101 no such folder, E102 not a model folder, E103 damaged, E104 pickle, E105 remote
                code, E107 a shard or a tensor that the index names is missing, E108 an index, a link or a
                hard link that leaves the folder.
        """
        folder = Path(folder)
        config = read_config(folder)
        if _is_there(folder / SINGLE):
            stamps = [inner_file(folder / SINGLE, folder, "it holds the weights")]
            header = read_header(folder / SINGLE)
        elif _is_there(folder / INDEX):
            stamps, header = _read_shards(folder)
        else:
            raise _no_weights(folder)
        return cls(folder, config, header.tensors, header.metadata, tuple(stamps))

    def names(self) -> list[str]:
        """Names of all stored tensors, sorted."""
        return sorted(self.tensors)

    def entry(self, name: str) -> StoredTensor:
        """Where a tensor lies, for lazy access.

        Raises:
            InputError: E107 when there is no such tensor.
        """
        if name not in self.tensors:
            raise InputError("E107", f"{self.folder} has no tensor {name!r}.")
        return self.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.entry(name).shape

    def dtype(self, name: str) -> str:
        """Element type as safetensors spells it: ``F32``, ``F16``, ``BF16``, ``I64`` ..."""
        return self.entry(name).dtype

    def is_float(self, name: str) -> bool:
        """Whether :meth:`read` can convert the tensor."""
        return self.dtype(name) in _FLOATS or self.dtype(name) == "BF16"

    def raw(self, name: str) -> bytes:
        """The little-endian bytes of a tensor, as stored.

        Raises:
            InputError: E103 when the file shrank since it was opened.
        """
        entry = self.entry(name)
        with entry.file.open("rb") as stream:
            stream.seek(entry.offset)
            data = stream.read(entry.nbytes)
        if len(data) != entry.nbytes:
            raise InputError(
                "E103", f"{entry.file.name} was cut short while {name!r} was read.", "Copy it again."
            )
        return data

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, whichever floating type is stored.

        Raises:
            InputError: E102 when the tensor does not hold floating-point numbers.
        """
        entry = self.entry(name)
        if entry.dtype == "BF16":
            halves = np.frombuffer(self.raw(name), "<u2")
            return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)
        if entry.dtype not in _FLOATS:
            raise InputError("E102", f"{name}: got dtype {entry.dtype}, expected F16, BF16, F32 or F64.")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused as such
            return np.frombuffer(self.raw(name), _FLOATS[entry.dtype]).astype(np.float32).reshape(entry.shape)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        InputError: E101, E102 or E105, as in :meth:`Checkpoint.open`.
    """
    if not folder.is_dir():
        raise _no_folder(folder)
    if _is_there(folder / "config.json"):
        inner_file(folder / "config.json", folder, "it is the configuration")
    config = read_json(folder / "config.json")
    if "auto_map" in config or config.get("trust_remote_code"):
        raise InputError(
            "E105",
            f"{folder / 'config.json'} asks for code from the model folder (auto_map); it is never executed.",
            "Save the model with a class that transformers itself has.",
        )
    return config


def _no_folder(path: Path) -> InputError:
    kind = kind_of(path)
    if kind is None:
        return InputError(
            "E101", f"the folder {path} does not exist.", "Give the path of a local model folder."
        )
    hint = {
        ONNX: "An .onnx file needs no base: `bcq export` packs it at once.",
        PART: "It is packed already: give the dense model.",
    }.get(kind, "Give the path of a local model folder; `bcq export` takes .onnx files, too.")
    return InputError("E102", f"{path} is {kind.words}, expected a model folder.", hint)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: E102 when it is missing, too large or not a JSON object.
    """
    if not file.is_file():
        raise InputError("E102", f"{file.parent} is not a model folder: it has no {file.name}.")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise InputError("E102", f"{file} is larger than {MAX_JSON_BYTES:,} bytes.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as fault:
        raise InputError("E102", f"{file} is not valid JSON ({fault}).") from fault
    if not isinstance(content, dict):
        raise InputError("E102", f"{file} is not a JSON object.")
    return content


def _no_number(text: str) -> float:
    """Refuses NaN, which Python's parser would take; Infinity means "no limit" in some configurations."""
    if text == "NaN":
        raise ValueError("it holds NaN")
    return float(text)


def _is_there(path: Path) -> bool:
    """Whether a name exists, be it a link that leads nowhere."""
    return path.exists() or path.is_symlink()


def _read_shards(folder: Path) -> tuple[list[Stamp], Header]:
    """All shards that the index names, each tensor checked to lie where the index says, and nowhere else."""
    stamps = [inner_file(folder / INDEX, folder, "it lists the shards")]
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("E102", f"{folder / INDEX} has no weight_map.")
    headers: dict[str, Header] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(
                "E108", f"{INDEX} names the shard {shard!r}, expected a file in the same folder."
            )
        relative_name(shard, f"a tensor that {INDEX} lists")
        if not _is_there(folder / shard):
            raise InputError(
                "E107", f"{INDEX} names {shard}, which {folder} does not have.", "Copy all shards."
            )
        stamps.append(inner_file(folder / shard, folder, f"{INDEX} names it"))
        headers[shard] = read_header(folder / shard)
    _check_twice(headers)
    tensors: dict[str, StoredTensor] = {}
    for name, shard in weight_map.items():
        if name not in headers[str(shard)].tensors:
            raise InputError("E107", f"{INDEX} says that {shard} holds {name!r}, but it does not.")
        tensors[name] = headers[str(shard)].tensors[name]
    return stamps, Header(tensors, next(iter(headers.values())).metadata)


def _check_twice(headers: dict[str, Header]) -> None:
    """Refuses a tensor that two shards hold: programs would not agree on its values."""
    first: dict[str, str] = {}
    for shard, header in headers.items():
        for name in header.tensors:
            if first.setdefault(name, shard) != shard:
                raise InputError(
                    "E103", f"{name!r} is in two shards, {first[name]} and {shard}.", "Copy the model again."
                )


def _no_weights(folder: Path) -> InputError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return InputError(
            "E104",
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is loaded.",
            "Save it as safetensors: model.save_pretrained(folder, safe_serialization=True).",
        )
    return InputError("E107", f"{folder} has a config.json but no weights: {SINGLE} and {INDEX} are missing.")
