# SPDX-License-Identifier: Apache-2.0
"""The folder of an adapter: written whole, read as something that an attacker may have made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.adapters.adapter import PARTS, Adapter, Alphas
from bcq.errors import BcqError, InputError, UsageError
from bcq.files import manifest
from bcq.files.atomic import AtomicFolder
from bcq.files.checkpoint import read_json
from bcq.files.inside import check_unchanged, inner_file
from bcq.files.safetensors_read import Header, StoredTensor, read_header, read_tensor
from bcq.files.safetensors_write import SPELLING, SafetensorsWriter, TensorSpec

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_TYPE = "BCQ"
FORMAT_VERSION = 1
MAX_BYTES = 1 << 30  # of all tensors; factors take kilobytes, a full set of dense tensors may take more
BASE_HASH_KEY = "base_hash"
_PICKLES = ("adapter_model.bin", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HASH = re.compile(r"[0-9a-f]{64}")
_FIELDS = {
    "peft_type": str, "format_version": int, "name": str, BASE_HASH_KEY: str, "matrices": list, "dense": list,
    "metadata": dict,
}  # fmt: skip


def write(adapter: Adapter, folder: Path) -> None:
    """See `Adapter.save`."""
    with AtomicFolder(folder) as partial:
        write_files(adapter, partial)
        manifest.write_manifest(partial, ["bcq", "adapter", adapter.name], 0)


def write_files(adapter: Adapter, folder: Path) -> None:
    """Writes configuration and tensors into a folder that exists.

    Raises:
        UsageError: E202 for metadata that is not JSON.
    """
    config = {
        "peft_type": PEFT_TYPE,
        "format_version": FORMAT_VERSION,
        "name": adapter.name,
        BASE_HASH_KEY: adapter.base_hash,
        "matrices": sorted(adapter.alphas),
        "dense": sorted(adapter.dense),
        "metadata": dict(adapter.metadata),
    }
    (folder / CONFIG_FILE).write_text(_json(config), encoding="utf-8")
    _write_tensors(adapter, folder / WEIGHTS_FILE)


def _json(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as fault:
        raise UsageError("E202", f"metadata of adapter '{config['name']}' is not JSON: {fault}.") from fault


def _write_tensors(adapter: Adapter, file: Path) -> None:
    tensors = adapter.tensors()
    specs = {name: TensorSpec(SPELLING[array.dtype.name], array.shape) for name, array in tensors.items()}
    notes = {"format": "pt", BASE_HASH_KEY: adapter.base_hash}
    with SafetensorsWriter(file, specs, notes) as writer:
        for name, array in tensors.items():
            writer.write(name, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def is_adapter(folder: Path) -> bool:
    """Whether a folder looks like an adapter of any kind."""
    return (folder / CONFIG_FILE).is_file()


def read(folder: Path) -> Adapter:
    """See `Adapter.open`."""
    config = _config(folder)
    header = open_weights(folder)
    stored, notes = header.tensors, header.metadata
    _check_types(folder, stored)
    if notes.get(BASE_HASH_KEY) != config[BASE_HASH_KEY]:
        raise _wrong(
            folder,
            BASE_HASH_KEY,
            config[BASE_HASH_KEY],
            f"{notes.get(BASE_HASH_KEY)!r}, as {WEIGHTS_FILE} says",
        )
    names = _alpha_names(config["matrices"])
    _check_listed(folder, set(stored), names, config["dense"])
    arrays = {name: read_tensor(entry) for name, entry in stored.items()}
    alphas: dict[str, dict[str, NDArray[Any]]] = {}
    for tensor, (matrix, part) in names.items():
        if tensor in arrays:
            alphas.setdefault(matrix, {})[part] = arrays[tensor]
    try:
        return Adapter(
            name=config["name"],
            base_hash=config[BASE_HASH_KEY],
            alphas={matrix: Alphas(**parts) for matrix, parts in alphas.items()},
            dense={name: arrays[name] for name in config["dense"]},
            metadata=config["metadata"],
        )
    except BcqError as fault:
        code = "E102" if isinstance(fault, UsageError) else fault.code  # the file's word, not the user's
        raise InputError(code, f"{folder}: {fault.message}", fault.hint) from fault


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise InputError("E101", f"the adapter {folder} {problem}.", "Give the path of an adapter's folder.")
    if not (folder / CONFIG_FILE).exists() and not (folder / CONFIG_FILE).is_symlink():
        raise InputError("E102", f"{folder} is no adapter: it has no {CONFIG_FILE}.")
    inner_file(folder / CONFIG_FILE, folder, "it describes the adapter")
    config = read_json(folder / CONFIG_FILE)
    if config.get("peft_type") != PEFT_TYPE:
        raise _wrong(
            folder,
            "peft_type",
            config.get("peft_type"),
            f"{PEFT_TYPE!r}",
            "A LoRA checkpoint becomes such an adapter with `bcq adapt`.",
        )
    for name, kind in _FIELDS.items():
        if type(config.get(name)) is not kind:
            raise _wrong(folder, name, config.get(name), f"a value of type {kind.__name__}")
    if config["format_version"] != FORMAT_VERSION:
        raise _wrong(folder, "format_version", config["format_version"], str(FORMAT_VERSION))
    if _HASH.fullmatch(config[BASE_HASH_KEY]) is None:
        raise _wrong(folder, BASE_HASH_KEY, config[BASE_HASH_KEY], "64 hex digits")
    for name in ("matrices", "dense"):
        names = config[name]
        if not all(isinstance(entry, str) for entry in names) or len(set(names)) < len(names):
            raise _wrong(folder, name, config[name], "a list of different names")
    return config


def open_weights(folder: Path) -> Header:
    """The tensors of an adapter of any kind; none is read.

    Raises:
        InputError: E102 more than any adapter needs, E103 damaged, E104 pickle, E107 missing, E108 a link
            that leaves the folder.
    """
    file = folder / WEIGHTS_FILE
    if not file.exists() and not file.is_symlink():
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise InputError(
                "E104",
                f"{folder} holds its tensors as a pickle ({pickles[0]}), which can run code when loaded.",
                f"Save them as {WEIGHTS_FILE}.",
            )
        raise InputError("E107", f"{folder} has a {CONFIG_FILE} but no {WEIGHTS_FILE}.", "Copy it again.")
    stamp = inner_file(file, folder, "it holds the adapter's tensors")
    header = read_header(file)
    total = sum(entry.nbytes for entry in header.tensors.values())
    if total > MAX_BYTES:
        raise InputError("E102", f"{file} holds {total:,} bytes of tensors, expected at most {MAX_BYTES:,}.")
    check_unchanged([stamp])
    return header


def _check_types(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    for entry in stored.values():
        if entry.dtype not in SPELLING.values():
            raise InputError(
                "E302",
                f"{folder}: '{entry.name}' has type {entry.dtype}, expected F16 or F32.",
                "Copy it again.",
            )


def _alpha_names(matrices: list[str]) -> dict[str, tuple[str, str]]:
    """Matrix and part by the name that a tensor of factors may have."""
    return {f"{matrix}.{part}": (matrix, part) for matrix in matrices for part in PARTS}


def _check_listed(
    folder: Path, stored: set[str], alphas: Mapping[str, tuple[str, str]], dense: list[str]
) -> None:
    """Every tensor is named by the configuration, and every name has its tensor."""
    for name in sorted(stored - set(alphas) - set(dense)):
        raise InputError(
            "E302", f"{folder}: {CONFIG_FILE} does not name the tensor '{name}'.", "Copy it again."
        )
    needed = {name for name, (_, part) in alphas.items() if part == "alpha_1"} | set(dense)
    for name in sorted(needed - stored):
        raise InputError("E107", f"{folder}: {WEIGHTS_FILE} has no tensor '{name}'.", "Copy it again.")


def _wrong(folder: Path, field: str, got: object, expected: str, hint: str = "Copy it again.") -> InputError:
    return InputError(
        "E102", f"{folder / CONFIG_FILE}: {field}: got {str(got)[:200]!r}, expected {expected}.", hint
    )
