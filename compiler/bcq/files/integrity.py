# SPDX-License-Identifier: Apache-2.0
"""Whether a folder is, byte for byte, what this program wrote: every file, then the codes of every matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bcq.errors import BcqError, InputError
from bcq.files.checkpoint import SINGLE
from bcq.files.kinds import ADAPTER, BASE, kind_of, require_export
from bcq.files.manifest import NAME, check_manifest, listed_files
from bcq.precisions.files import PATTERN, further

ADAPTER_FILE = "adapter_config.json"
_AGAIN = "Copy the folder, or make it, again."


@dataclass(frozen=True)
class Integrity:
    """What a check of a folder found.

    Attributes:
        ok: nothing differs.
        files: how many files the manifest lists.
        matrices: how many packed matrices were compared with the hashes of their codes; 0 for an export when
            the package onnx is not installed.
        faults: one sentence for each file or matrix that differs.
    """

    ok: bool
    files: int
    matrices: int
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_integrity(folder: str | Path) -> Integrity:
    """Compares an export, a quantized base or an adapter with its manifest, and codes with their hashes.

    Every bit of every file counts: codes, alphas, offsets, dense tensors, graph and tokenizer. The hashes of
    the codes are those of the nodes, or of a base's description; they also tell when somebody wrote a new
    manifest over a changed model. Neither is a signature: who can write both can change everything.

    Raises:
        InputError: E101 when there is no folder, E102 when it is none of these, E109 when its
            manifest is missing or cannot be read.
    """
    folder = Path(folder)
    if not (folder / NAME).is_file() and kind_of(folder) not in (BASE, ADAPTER):
        require_export(folder, "an export, a quantized base or an adapter")
    faults = file_faults(folder)
    matrices = 0
    if not faults:
        try:
            matrices = sum(1 for _ in _checked_matrices(folder))
        except BcqError as fault:
            faults = [fault.message]
    return Integrity(not faults, len(listed_files(folder) or ()), matrices, faults)


def require_files(folder: Path) -> None:
    """Refuses a folder whose files are not those that ``MANIFEST.json`` records.

    Raises:
        InputError: E109 for the first file that is missing, differs, or is of the model and not listed.
    """
    faults = file_faults(folder)
    if faults:
        raise InputError("E109", f"{folder}: {faults[0]}", _AGAIN)


def file_faults(folder: Path) -> list[str]:
    """One sentence for each file that is missing, differs, or is of the model and not in the manifest.

    Raises:
        InputError: E109 when the manifest is missing or cannot be read.
    """
    try:
        faults = check_manifest(folder)
    except InputError as fault:
        raise InputError("E109", fault.message, fault.hint) from fault
    except OSError as fault:
        raise InputError("E109", f"{folder / NAME} cannot be read: {fault}.", _AGAIN) from fault
    listed = listed_files(folder)
    if listed is None:
        return [*faults, f"{NAME} was not written by this program."]
    model = sorted(path.name for path in folder.glob(PATTERN))
    return faults + [f"{name} is not listed in {NAME}." for name in model if name not in listed]


def _checked_matrices(folder: Path) -> Iterator[str]:
    """Names of packed matrices whose codes have their recorded hash.

    Raises:
        InputError: E109 for the first that has not.
    """
    if (folder / SINGLE).is_file():
        from bcq.files.base import QuantizedBase

        base = QuantizedBase.open(folder)
        for name in base.names():
            base.packed(name)
            yield name
    elif (folder / ADAPTER_FILE).is_file():
        from bcq.adapters.adapter import Adapter

        Adapter.open(folder)  # it has factors and no codes
    elif find_spec("onnx") and find_spec("onnx_ir"):
        from bcq.files.exported import ExportedWeights

        for bits in (None, *further(folder)):
            yield from ExportedWeights.open(folder, bits).packed
