# SPDX-License-Identifier: Apache-2.0
"""Where bytes of strangers enter through Python: each file that is read, and what must hold whatever it says.

A reader succeeds or raises a `BcqError` (a server: a `Refusal`) that names the file, in one clean line, and
takes memory in proportion to the file. What it reads from safetensors is what the safetensors library reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from bcq.adapters.adapter import Adapter
from bcq.adapters.slots import Slots
from bcq.calibration.texts import documents
from bcq.checks import external
from bcq.checks import model as model_check
from bcq.errors import BcqError, ResourceError
from bcq.files import manifest
from bcq.files.base import QuantizedBase
from bcq.files.checkpoint import Checkpoint, read_json
from bcq.files.exported import ExportedWeights
from bcq.files.integrity import check_integrity
from bcq.files.kinds import kind_of
from bcq.generation.described import begin_token, read_described
from bcq.generation.template import open_template
from bcq.importers.folder import read_folder
from bcq.lora.checkpoint import Lora
from bcq.precisions.files import further, precisions
from bcq.serve.limits import Limits
from bcq.serve.refusal import Refusal
from bcq.serve.request import parse
from bcq.tuning.data import read_examples
from bcq.tuning.options import TuneOptions

_DESERIALIZE: Any = safetensors.deserialize  # it has no annotations
LONGEST_MESSAGE = 2000  # characters
_PART = re.compile(r"'.+'|^\S+: ")  # a tensor, a node or a field


class Finding(Exception):
    """A promise that a file has broken."""


@dataclass(frozen=True)
class Place:
    """One file of the seeds.

    Attributes:
        file: its name below the folder of the seeds; other files stay as they are.
        form: ``json``, ``safetensors``, ``onnx`` or ``lines``: how it may be changed so that it still parses.
        read: gets the file.
    """

    file: str
    form: str
    read: Callable[[Path], object]

    def check(self, root: Path, content: bytes) -> str:
        """Writes the file, reads it and puts the old one back.

        Returns:
            The code of the refusal, or "" where it was accepted.

        Raises:
            Finding: for a message that is not one; any other exception is a finding, too.
        """
        path = root / self.file
        before = path.read_bytes()
        path.write_bytes(content)
        try:
            self.read(path)
        except BcqError as fault:
            check_message(fault, path)
            return fault.code
        except Refusal as refusal:
            check_line(refusal.body["error"]["message"])
            return str(refusal.status)
        finally:
            path.write_bytes(before)
        return ""


def check_message(fault: BcqError, path: Path) -> None:
    """A refusal names the file, its folder or a part of it, is no excuse, and fits on a line."""
    if isinstance(fault, ResourceError):
        raise Finding(f"a small file takes too much: {fault}") from fault
    check_line(fault.message)
    check_line(fault.hint)
    named = any(name in fault.message for name in (path.name, str(path.parent), path.stem))
    if not named and not _PART.search(fault.message):
        raise Finding(f"{path} is not named: {fault.message}") from fault


def check_line(text: str) -> None:
    """Text that a terminal, a log and JSON can hold."""
    text.encode("utf-8")  # lone surrogates raise
    if len(text) > LONGEST_MESSAGE or not all(letter.isprintable() for letter in text):
        raise Finding(f"no clean line of {len(text)} characters: {text[:3000]!r}")


def _checkpoint(file: Path) -> None:
    opened = Checkpoint.open(file.parent)
    held = {entry.name: opened.raw(entry.name) for entry in opened.tensors.values()}
    described = {name: (list(opened.shape(name)), opened.dtype(name)) for name in held}
    theirs = dict(_DESERIALIZE(file.read_bytes())) if file.suffix == ".safetensors" else None
    if theirs is None:
        return
    if {name: (list(t["shape"]), t["dtype"]) for name, t in theirs.items()} != described:
        raise Finding(f"other tensors than in the library: {described}")
    if any(bytes(tensor["data"]) != held[name] for name, tensor in theirs.items()):
        raise Finding("other bytes than in the library")
    for name in filter(opened.is_float, held):
        opened.read(name)


def _config(file: Path) -> None:
    Checkpoint.open(file.parent)
    kind_of(file.parent)
    precisions(file.parent)
    further(file.parent)


def _base(file: Path) -> None:
    opened = QuantizedBase.open(file.parent)
    for name in opened.names():
        for bits in (None, *opened.further_bits()):
            opened.packed(name, bits)
    for name in opened.dense_names():
        opened.checkpoint.raw(name)
    _ = opened.base_hash
    _config(file)


def _onnx(file: Path) -> None:
    external.check_file(file)
    model_check.check_model(file)
    weights = ExportedWeights.open(file.parent)
    for name in weights.packed:
        weights.dequantized(name)


def _manifest(file: Path) -> None:
    manifest.listed_files(file.parent)
    check_integrity(file.parent)


class _Session:
    """An export's session as far as its configuration is checked against it."""

    @staticmethod
    def get_outputs() -> list[Any]:
        """Nothing but the width of logits."""
        return [type("Output", (), {"name": "logits", "shape": ["batch", "n", 20]})]


def _genai(file: Path) -> None:
    read_described(file, read_json(file), _Session())


def _encoder_decoder(file: Path) -> None:
    config = read_json(file)
    _genai(file)
    begin_token(file, config)


def _similarity(file: Path) -> None:
    read_examples(file, TuneOptions(task="similarity"))


def _request(chat: bool) -> Callable[[Path], object]:
    return lambda file: parse(file.read_bytes(), Limits(), chat)


PLACES = (
    Place("model/model.safetensors", "safetensors", _checkpoint),
    Place("model/config.json", "json", _config),
    Place("shards/model.safetensors.index.json", "json", _checkpoint),
    Place("base/model.safetensors", "safetensors", _base),
    Place("base/config.json", "json", _base),
    Place("base/MANIFEST.json", "json", _manifest),
    Place("adapter/adapter_config.json", "json", lambda file: Adapter.open(file.parent)),
    Place("adapter/adapter_model.safetensors", "safetensors", lambda file: Adapter.open(file.parent)),
    Place("lora/adapter_config.json", "json", lambda file: Lora.open(file.parent)),
    Place("lora/adapter_model.safetensors", "safetensors", lambda file: Lora.open(file.parent)),
    Place("slots/adapters/slots.safetensors", "safetensors", lambda file: Slots.read(file.parent)),
    Place("gptq/config.json", "json", lambda file: read_folder(file.parent)),
    Place("gptq/model.safetensors", "safetensors", lambda file: read_folder(file.parent)),
    Place("graph/model.onnx", "onnx", _onnx),
    Place("texts/request", "json", _request(False)),
    Place("texts/request", "json", _request(True)),
    Place("texts/genai_config.json", "json", _genai),
    Place("texts/encoder_decoder_config.json", "json", _encoder_decoder),
    Place("texts/tokenizer_config.json", "json", lambda file: open_template(file.parent)),
    Place("texts/pairs.jsonl", "lines", _similarity),
    Place("texts/pairs.tsv", "lines", _similarity),
    Place("texts/pairs.jsonl", "lines", lambda file: list(documents(file))),
)
