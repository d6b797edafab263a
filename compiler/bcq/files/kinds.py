# SPDX-License-Identifier: Apache-2.0
"""What a path is, so that a wrong input is told what was given, what was expected and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bcq.errors import BcqError, InputError

MODEL_FILE, CONFIG_FILE, MANIFEST_FILE = "model.onnx", "config.json", "MANIFEST.json"
_EXPORT_IT = "Make an export of it: bcq export {path} -o FOLDER"
_GIVE_EXPORT = "Give a folder that `bcq export` wrote."


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        words: with its article, for "... is a dense model folder".
        advice: what to do where an export was expected; ``{path}`` and ``{parent}`` stand for its own.
    """

    words: str
    advice: str


EXPORT = Kind("an export", "")
UNLISTED = Kind(f"a folder with a {MODEL_FILE} that `bcq export` did not write", _GIVE_EXPORT)
BASE = Kind("a quantized base", _EXPORT_IT)
DENSE = Kind("a dense model folder", _EXPORT_IT)
ADAPTER = Kind("an adapter", "Give the export that it belongs to.")
FOLDER = Kind("a folder without a model", _GIVE_EXPORT)
PART = Kind("one file of an export", "Give the whole folder, {parent}.")
ONNX = Kind("an .onnx file", "Give the folder of its export; bcq.session opens a single file, too.")
FILE = Kind("a file", _GIVE_EXPORT)


def kind_of(path: Path) -> Kind | None:
    """What lies at a path, by the names of files and the configuration; None when nothing does."""
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.is_file():
        return None
    if (path.parent / MANIFEST_FILE).is_file() and path.name.startswith(MODEL_FILE):
        return PART
    return ONNX if path.suffix == ".onnx" else FILE


def _kind_of_folder(folder: Path) -> Kind:
    model, config = (folder / MODEL_FILE).is_file(), (folder / CONFIG_FILE).is_file()
    if model and (folder / MANIFEST_FILE).is_file():
        return EXPORT
    if config and (not model or any(folder.glob("*.safetensors"))):
        return BASE if _is_quantized(folder) else DENSE
    if model:
        return UNLISTED
    return ADAPTER if (folder / "adapter_config.json").is_file() else FOLDER


def require_export(path: Path, expected: str = "the folder of an export") -> None:
    """Raises InputError E101 or E102 unless a path is a folder with an ONNX model."""
    kind = kind_of(path)
    if kind is None:
        raise InputError("E101", f"the folder {path} does not exist.", _GIVE_EXPORT)
    if kind not in (EXPORT, UNLISTED):
        advice = kind.advice.format(path=path, parent=path.parent)
        raise InputError("E102", f"{path} is {kind.words}, expected {expected}.", advice)


def require_original(path: Path, export: Path) -> None:
    """Raises InputError E101 or E102 unless a path may be what an export was made of."""
    wanted = DENSE if (export / CONFIG_FILE).is_file() else ONNX
    kind = kind_of(path)
    advice = f"Give the model that {export} was made of."
    if kind is None:
        raise InputError("E101", f"{path} does not exist.", advice)
    if kind != wanted:
        raise InputError("E102", f"{path} is {kind.words}, expected {wanted.words}.", advice)


def _is_quantized(folder: Path) -> bool:
    from bcq.files.checkpoint import read_json

    try:
        entry = read_json(folder / CONFIG_FILE).get("quantization_config")
    except (BcqError, OSError):
        return False  # whoever opens it says what is wrong
    return isinstance(entry, dict) and entry.get("quant_method") == "bcq"
