# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that another program quantized in, a quantized base out: all or nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bcq import contract, packing
from bcq.errors import InputError, UnsupportedError
from bcq.files.atomic import AtomicFolder, check_apart
from bcq.files.base import BaseMatrix, QuantizedBase, metadata
from bcq.files.checkpoint import SINGLE, Checkpoint
from bcq.files.inside import check_unchanged
from bcq.files.manifest import write_manifest
from bcq.files.safetensors_read import StoredTensor
from bcq.files.safetensors_write import SafetensorsWriter, TensorSpec
from bcq.importers.factors import REFUSE, Factors, factors_of, relative_error
from bcq.importers.result import ImportedMatrix
from bcq.importers.source import Matrices, SourceMatrix
from bcq.matrices.find import MatrixInfo, find_matrices
from bcq.progress import SILENT, Progress
from bcq.quantize import REPORT, PlannedMatrix, check_side_files, copy_side_files

_NO_HASH = "0" * 64
_KEPT = "the source keeps it dense"
_DESCRIPTIONS = ("quantization_config", "anybcq")  # of other formats, in config.json


@dataclass(frozen=True)
class _Taken:
    """A matrix of the source, its float16 factors, and its place in the base."""

    source: SourceMatrix
    factors: Factors
    base: BaseMatrix


def write_base(
    checkpoint: Checkpoint,
    matrices: Matrices,
    kind: str,
    output: str | Path,
    inexact: str = REFUSE,
    progress: Progress = SILENT,
    command: Sequence[str] = ("bcq", "import"),
) -> tuple[QuantizedBase, list[ImportedMatrix]]:
    """Writes the base; what does not fit is refused before anything is written.

    Args:
        checkpoint: the opened source folder.
        matrices: its quantized matrices, as an importer found them.
        kind: name of the format, for the report.
        output: folder to make; one that this program wrote before is replaced at the very end.
        inexact: one of `bcq.importers.factors.INEXACT`.
        progress: told once a matrix.
        command: what to record in the manifest.

    Returns:
        The base, and how well each matrix was taken over.

    Raises:
        InputError: E101 to E108 for a source that is damaged or unsafe, or does not fit its configuration.
        UnsupportedError: E401 for an architecture that transformers lacks, E403 for what is not exact.
        UsageError: E203 when the output holds something else or would replace the source.
        ResourceError: E601 when the disk is full.
    """
    check_apart(checkpoint.folder, output)
    check_side_files(checkpoint.folder)
    dense, found = _as_dense(checkpoint, matrices)
    taken = {
        info.stored: _take(matrices, info, found, inexact) for info in found if _is_taken(info, matrices)
    }
    with AtomicFolder(output) as folder:
        results = _write_weights(dense, taken, folder / SINGLE, progress)
        planned = _planned(dense, found, taken, results)
        config = _config(checkpoint.config, kind, taken, planned)
        _write_json(folder / "config.json", config)
        copy_side_files(checkpoint.folder, folder)
        described = [dataclasses.asdict(matrix) for matrix in planned]
        options = config["quantization_config"]
        _write_json(
            folder / REPORT,
            {"format_version": contract.FORMAT_VERSION, "options": options, "matrices": described},
        )
        write_manifest(folder, command, 0)
        check_unchanged(checkpoint.stamps)
    return QuantizedBase.open(output), list(results.values())


def _is_taken(info: MatrixInfo, matrices: Matrices) -> bool:
    return not info.tied_to and info.stored in matrices


def _as_dense(checkpoint: Checkpoint, matrices: Matrices) -> tuple[Checkpoint, list[MatrixInfo]]:
    """The folder as it would be dense, and its matrices: one tensor in the place of those that make it up."""
    parts = {part for matrix in matrices.values() for part in matrix.tensors}
    kept = {name: entry for name, entry in checkpoint.tensors.items() if name not in parts}
    for name in matrices:
        if name in kept:
            raise InputError(
                "E103",
                f"{checkpoint.folder} holds '{name}' both dense and quantized.",
                "Copy the model again.",
            )
    turned = _parameters(checkpoint, {*kept, *matrices})
    for name, matrix in matrices.items():
        first = checkpoint.entry(matrix.tensors[0])
        shape = (matrix.inputs, matrix.rows) if turned.get(name) else (matrix.rows, matrix.inputs)
        kept[name] = StoredTensor(name, "F16", shape, first.file, first.offset, 0)
        if name in turned:
            _drop_bias(checkpoint, kept, f"{name.removesuffix('.weight')}.bias", set(turned))
    dense = dataclasses.replace(checkpoint, tensors=kept)
    found = find_matrices(dense)
    strays = sorted(set(matrices) - {info.stored for info in found})
    families = {_family(info.stored) for info in found}
    for name in strays:
        if _family(name) in families:
            raise InputError(
                "E107",
                f"{checkpoint.folder} quantizes '{name}', which the model of config.json does not have.",
                "Check the number of layers in config.json.",
            )
        del kept[name]  # a head or a pooler that the model's class does not have
    return dense, found


def _family(name: str) -> str:
    """The name with stars for numbers of layers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _drop_bias(
    checkpoint: Checkpoint, kept: dict[str, StoredTensor], name: str, parameters: set[str]
) -> None:
    """Some programs store a bias of zeros beside every matrix; one that is not zero would be lost."""
    if name not in kept or name in parameters:
        return
    if not checkpoint.is_float(name) or checkpoint.read(name).any():
        raise UnsupportedError(
            "E401", f"'{name}' is not zero, but the model of config.json has no such bias: it would be lost."
        )
    del kept[name]


def _parameters(checkpoint: Checkpoint, names: set[str]) -> dict[str, bool]:
    """Which stored tensors are parameters, and whether their class holds them as ``[K, N]`` (Conv1D)."""
    from transformers.pytorch_utils import Conv1D

    from bcq.frontends.names import stored_names
    from bcq.frontends.weightless import any_weightless_model

    model = any_weightless_model(checkpoint)
    stored = stored_names(model, names, checkpoint.folder)
    modules = dict(model.named_modules())
    return {place: isinstance(modules.get(name.rpartition(".")[0]), Conv1D) for name, place in stored.items()}


def _take(matrices: Matrices, info: MatrixInfo, found: list[MatrixInfo], inexact: str) -> _Taken:
    source = matrices[info.stored]
    factors = factors_of(source.read_scales(), info.stored, inexact)
    tied = tuple(other.name for other in found if other.tied_to == info.name)
    base = BaseMatrix(
        stored=info.stored, name=info.name, kind=info.kind, rows=source.rows, inputs=source.inputs,
        bits=factors.planes, group_size=source.group_size, offset=factors.offset is not None,
        transposed=info.transposed, tied=tied, code_hash=_NO_HASH,
    )  # fmt: skip
    return _Taken(source, factors, base)


def _write_weights(
    dense: Checkpoint, taken: dict[str, _Taken], path: Path, progress: Progress
) -> dict[str, ImportedMatrix]:
    """Streams all tensors into ``path``; what became of each matrix, by its checkpoint name."""
    results: dict[str, ImportedMatrix] = {}
    bases = {name: one.base for name, one in taken.items()}
    specs: dict[str, TensorSpec] = {}
    for name in dense.names():
        own = (
            {name: TensorSpec(dense.dtype(name), dense.shape(name))}
            if name not in bases
            else bases[name].specs()
        )
        specs.update(own)
    progress.start("import", len(taken))
    with SafetensorsWriter(path, specs, metadata(list(bases.values()))) as writer:
        for name in dense.names():
            if name not in taken:
                _check_finite(dense, name)
                writer.write(name, dense.raw(name))
                continue
            packed, results[name] = _packed(taken[name])
            bases[name] = dataclasses.replace(bases[name], code_hash=packed.code_hash())
            for part, tensor in packed.tensors().items():
                writer.write(
                    f"{name}.{part}", np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes()
                )
            progress.step(results[name].name, str(results[name]))
        writer.replace_metadata(metadata(list(bases.values())))
    progress.done()
    return results


def _packed(taken: _Taken) -> tuple[packing.PackedWeight, ImportedMatrix]:
    source, factors = taken.source, taken.factors
    words = source.read_words()
    weight = factors.weight(words, source.inputs, source.group_size)
    error = relative_error(words, source.read_scales(), weight) if factors.rounded else 0.0
    result = ImportedMatrix(taken.base.name, factors.planes, not factors.rounded, factors.worst, error)
    return packing.pack(weight), result


def _check_finite(checkpoint: Checkpoint, name: str) -> None:
    if checkpoint.is_float(name) and not np.isfinite(checkpoint.read(name)).all():
        raise InputError(
            "E106",
            f"{name} holds NaN or infinity, expected finite weights.",
            "The checkpoint is damaged: copy it again.",
        )


def _planned(
    dense: Checkpoint,
    found: list[MatrixInfo],
    taken: dict[str, _Taken],
    results: dict[str, ImportedMatrix],
) -> list[PlannedMatrix]:
    """The rows of the report, in the order of the modules."""
    rows = []
    for info in found:
        size = 4 * info.rows * info.inputs
        row = PlannedMatrix(info.name, info.stored, info.kind, info.rows, info.inputs, None, 0, size, 0)
        if info.tied_to:
            reason = f"shares the matrix of {info.tied_to}"
            row = dataclasses.replace(row, kind="tied", dense_bytes=0, reason=reason)
        elif info.stored in taken:
            base = taken[info.stored].base
            row = dataclasses.replace(
                row, bits=base.bits, group_size=base.group_size, packed_bytes=base.packed_bytes,
                relative_error=results[info.stored].relative_error, offset=base.offset,
            )  # fmt: skip
        else:
            nbytes = dense.entry(info.stored).nbytes
            row = dataclasses.replace(row, packed_bytes=nbytes, reason=info.reason or _KEPT, requested=True)
        rows.append(row)
    return rows


def _config(
    config: dict[str, Any], kind: str, taken: dict[str, _Taken], planned: list[PlannedMatrix]
) -> dict[str, Any]:
    """The source's configuration with our description; dense matrices are noted as kept on request."""
    kept = [f"{row.name}=keep" for row in planned if row.bits is None and row.kind != "tied"]
    first = next(iter(taken.values())).base
    section = {
        "quant_method": "bcq", "format_version": contract.FORMAT_VERSION, "layout": contract.LAYOUT,
        "bits": first.bits, "offset": first.offset, "overrides": kept, "imported_from": kind,
        "group_size": 0 if first.group_size == first.inputs else first.group_size,
    }  # fmt: skip
    plain = {key: value for key, value in config.items() if key not in _DESCRIPTIONS}
    return {**plain, "quantization_config": section}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
