# SPDX-License-Identifier: Apache-2.0
"""MANIFEST.json: the hash of every file of an output folder, and what made it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bcq import contract
from bcq.errors import InputError

NAME = "MANIFEST.json"
_PACKAGES = ("onnx-bcq", "numpy", "onnx", "onnx-ir", "onnxruntime", "safetensors", "torch", "transformers")
_OWN_HASH = "manifest_sha256"
_BLOCK_BYTES = 1 << 20


def write_manifest(folder: Path, command: Sequence[str], seed: int) -> None:
    """Writes ``MANIFEST.json`` over all other files of ``folder``; it holds no time: equal work, equal bytes.

    Args:
        folder: a finished output folder.
        command: the words that made it.
        seed: seed of every random choice.
    """
    content = {
        "format_version": contract.FORMAT_VERSION,
        "command": list(command),
        "seed": seed,
        "versions": versions(),
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for name, path in _files(folder)
        },
    }
    (folder / NAME).write_text(_text(content), encoding="utf-8")


def check_manifest(folder: Path) -> list[str]:
    """Compares a folder with its manifest.

    Returns:
        One sentence for each file that is missing or differs, the manifest included; empty when all are as
        written.

    Raises:
        InputError: E101 without a manifest, E103 when it cannot be read.
    """
    content = _read(folder)
    files = content["files"]
    present = dict(_files(folder))
    faults = []
    for name, expected in files.items():
        if name not in present:
            faults.append(f"{name} is missing.")
        elif present[name].stat().st_size != expected["bytes"]:
            faults.append(f"{name} has {present[name].stat().st_size} bytes, expected {expected['bytes']}.")
        elif file_hash(present[name]) != expected["sha256"]:
            faults.append(f"{name} has other content than when it was written.")
    if (folder / NAME).read_bytes() != _text(content).encode("utf-8"):
        faults.append(f"{NAME} has other content than when it was written.")
    return faults


def listed_files(folder: Path) -> frozenset[str] | None:
    """The names in the manifest of a folder that this program wrote; None when it has no such manifest."""
    try:
        content = _read(folder)
    except (InputError, OSError, RecursionError):
        return None
    if not content.keys() >= {"format_version", "command", "versions"}:
        return None
    return frozenset(content["files"])


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def file_hash(path: Path) -> str:
    """Lower-case hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _text(content: dict[str, Any]) -> str:
    """The manifest's text, which ends with a hash of all that it says before."""
    said = {name: value for name, value in content.items() if name != _OWN_HASH}
    own = hashlib.sha256(json.dumps(said, indent=2).encode("utf-8")).hexdigest()
    return json.dumps({**said, _OWN_HASH: own}, indent=2) + "\n"


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below ``folder`` but the manifest, by its name with forward slashes, sorted."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != NAME:
            yield name, path


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise InputError("E101", f"'{folder}' has no {NAME}.", "Export the model again.") from fault
    except (ValueError, RecursionError) as fault:
        raise InputError("E103", f"'{path}' is not JSON: {fault}.", "Export the model again.") from fault
    if not _is_manifest(content):
        raise InputError("E103", f"'{path}' lists no files with bytes and sha256.", "Export the model again.")
    return dict(content)


def _is_manifest(content: Any) -> bool:
    files = content.get("files") if isinstance(content, dict) else None
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in files.values()
    )
