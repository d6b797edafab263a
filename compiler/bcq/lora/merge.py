# SPDX-License-Identifier: Apache-2.0
"""A dense model with a LoRA's change in its weights, as a folder that everything else takes; in one pass."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bcq.bcq import Float32
from bcq.errors import InputError, UnsupportedError
from bcq.files.base import QuantizedBase, is_base
from bcq.files.checkpoint import SINGLE, Checkpoint
from bcq.files.inside import inner_file
from bcq.files.safetensors_write import SafetensorsWriter, TensorSpec
from bcq.lora.adapt import Retained, measured
from bcq.lora.checkpoint import Lora
from bcq.matrices.find import MatrixInfo, find_matrices
from bcq.quantize import check_side_files, copy_side_files


@contextmanager
def merged_folder(model: Path, lora: Lora, beside: Path) -> Iterator[Path]:
    """The merged model in a temporary folder of its own name, which goes at the end.

    Args:
        model: Hugging Face folder.
        lora: was trained on it.
        beside: the temporary folder lies in this one; it takes as much of the disk as the model.

    Raises:
        InputError: as `write_merged`.
    """
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".merged-") as temporary:
        folder = Path(temporary) / model.resolve().name
        folder.mkdir()
        write_merged(model, lora, folder)
        yield folder


def write_merged(model: Path, lora: Lora, folder: Path) -> None:
    """Writes the merged model; a changed tensor becomes float32, every other one keeps its bytes.

    Raises:
        InputError: as `Checkpoint.open`; E302 for a change of a tensor that the model lacks or that has
            another shape.
        UnsupportedError: E401 for a model that is quantized already.
    """
    checkpoint = Checkpoint.open(model)
    if is_base(checkpoint.config):
        raise UnsupportedError(
            "E401", f"{model} is quantized already.", "Give the dense model, or use bcq adapt."
        )
    changed = _changes(checkpoint, lora)
    specs = {
        name: TensorSpec("F32" if name in changed else checkpoint.dtype(name), checkpoint.shape(name))
        for name in checkpoint.names()
    }
    with SafetensorsWriter(folder / SINGLE, specs, {"format": "pt"}) as writer:
        for name in specs:
            if name in changed:
                data = np.ascontiguousarray(_merged(checkpoint, lora, name, changed[name]), "<f4").tobytes()
            else:
                data = checkpoint.raw(name)
            writer.write(name, data)
    check_side_files(model)
    inner_file(model / "config.json", model, "it is the configuration")
    shutil.copyfile(model / "config.json", folder / "config.json")
    copy_side_files(model, folder)


def retained_by(base: QuantizedBase, model: Path, lora: Lora) -> list[Retained]:
    """How much of a LoRA's change a base of the merged model holds, matrix by matrix."""
    from bcq.frontends.hf import read_dense

    checkpoint = Checkpoint.open(model)
    found = []
    for stored, (parameter, info) in _changes(checkpoint, lora).items():
        if parameter in lora.changes and base.find(stored) is not None:
            before, delta = checkpoint.read(stored), _turned(lora.changes[parameter].delta(), info)
            found.append(measured(stored, before, read_dense(base, stored) - before, delta))
    return found


def _changes(checkpoint: Checkpoint, lora: Lora) -> dict[str, tuple[str, MatrixInfo | None]]:
    """Parameter of the LoRA, and matrix, by the checkpoint's name of each changed tensor."""
    matrices = {info.name: info for info in find_matrices(checkpoint)}
    vectors = _stored_names(checkpoint)
    found: dict[str, tuple[str, MatrixInfo | None]] = {}
    for parameter in dict.fromkeys((*lora.changes, *lora.replaced)):
        info, stored = matrices.get(parameter), vectors.get(parameter)
        if stored is None or (info is None and parameter in lora.changes):
            raise _misfit(lora, parameter, "which the model does not have")
        got: tuple[int, ...] = checkpoint.shape(stored)
        expected = got
        if info is not None and parameter in lora.changes:
            got, expected = lora.changes[parameter].shape, (info.rows, info.inputs)
        elif parameter in lora.replaced:
            got = lora.replaced[parameter].shape
        if got != expected:
            raise _misfit(lora, parameter, f"by {list(got)}, expected {list(expected)}")
        if stored in found:
            raise _misfit(lora, parameter, f"which is tied to '{found[stored][0]}', changed as well")
        found[stored] = (parameter, info)
    return found


def _stored_names(checkpoint: Checkpoint) -> dict[str, str]:
    from bcq.frontends.names import stored_names
    from bcq.frontends.weightless import any_weightless_model

    return stored_names(any_weightless_model(checkpoint), checkpoint.tensors, checkpoint.folder)


def _merged(checkpoint: Checkpoint, lora: Lora, name: str, change: tuple[str, MatrixInfo | None]) -> Float32:
    parameter, info = change
    before = lora.replaced[parameter] if parameter in lora.replaced else checkpoint.read(name)
    if parameter not in lora.changes:
        return before
    return before + _turned(lora.changes[parameter].delta(), info)


def _turned(delta: Float32, info: MatrixInfo | None) -> Float32:
    """A change ``[N, K]`` as the checkpoint stores the matrix."""
    return delta.T if info is not None and info.transposed else delta


def _misfit(lora: Lora, parameter: str, detail: str) -> InputError:
    return InputError(
        "E302",
        f"{lora.folder} changes '{parameter}', {detail}.",
        "Give the model that the LoRA was trained on.",
    )
