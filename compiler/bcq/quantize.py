# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder in, a quantized base out: one tensor in memory at a time, all or nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import contract
from bcq.calibration.settings import CalibrationOptions
from bcq.errors import InputError, UnsupportedError
from bcq.files.atomic import AtomicFolder, check_apart
from bcq.files.base import BaseMatrix, QuantizedBase, is_base, metadata
from bcq.files.checkpoint import SINGLE, Checkpoint, read_config, read_json
from bcq.files.inside import check_unchanged, inner_file
from bcq.files.manifest import write_manifest
from bcq.files.safetensors_write import SafetensorsWriter, TensorSpec
from bcq.matrices.find import MatrixInfo, find_matrices
from bcq.matrices.plan import QuantizeOptions, check_overrides, choice_for, group_size_for
from bcq.matrices.resume import Finished
from bcq.matrices.solver import MatrixSolver, Outcome
from bcq.precisions import further
from bcq.progress import SILENT, Progress

REPORT = "bcq_report.json"
SIDE_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json",
    "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "spiece.model", "sentencepiece.bpe.model", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json",
)  # fmt: skip
_OBJECTS = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_LAYER_COUNTS = ("n_layer", "num_hidden_layers", "num_layers")
_NO_HASH = "0" * 64


@dataclass(frozen=True)
class PlannedMatrix:
    """What will be, or was, done with one matrix.

    Attributes:
        name: parameter name.
        stored: checkpoint name.
        kind: as in :class:`bcq.matrices.find.MatrixInfo`.
        rows: N.
        inputs: K.
        bits: q, or None when it stays dense.
        group_size: g, 0 when it stays dense.
        dense_bytes: its size in float32.
        packed_bytes: its size in the output.
        reason: why it stays dense, or that it shares another's planes.
        requested: the user asked for this.
        relative_error: sum of squared errors over sum of squared weights, or None before solving or when
            dense.
        offset: whether its groups have offsets.
        method: ``calibrated`` or one of ``bcq.matrices.plan.METHODS``; empty in a run without calibration.
        calibrated_error: as ``relative_error``, under the second moments of its inputs; None when they are
            not known.
        also: further precisions: bits, group size and errors of each.
    """

    name: str
    stored: str
    kind: str
    rows: int
    inputs: int
    bits: int | None
    group_size: int
    dense_bytes: int
    packed_bytes: int
    reason: str = ""
    requested: bool = False
    relative_error: float | None = None
    offset: bool = False
    method: str = ""
    calibrated_error: float | None = None
    also: tuple[dict[str, Any], ...] = ()


def plan(model_folder: str | Path, options: QuantizeOptions) -> list[PlannedMatrix]:
    """What :func:`quantize` would do, without reading a weight. Same errors."""
    checkpoint = _open(model_folder)
    return _plan(checkpoint, find_matrices(checkpoint), options)[0]


def quantize(
    model_folder: str | Path,
    output: str | Path,
    options: QuantizeOptions | None = None,
    progress: Progress = SILENT,
    command: Sequence[str] = ("bcq", "quantize"),
    resume: bool = False,
    finished: Finished | None = None,
    calibration: CalibrationOptions | None = None,
) -> QuantizedBase:
    """Writes a quantized base.

    Args:
        model_folder: local folder with ``config.json`` and safetensors.
        output: folder to make; one that this program wrote before is replaced at the very end.
        options: bits, groups, method; the defaults when None.
        progress: told once a matrix.
        command: what to record in the manifest.
        resume: go on with the matrices that a stopped run of the same output has finished.
        finished: where the caller keeps finished matrices; None for a store beside the output.
        calibration: text on which matrices are solved, instead of from their weights alone.

    Raises:
        InputError: E101 to E108 as :meth:`Checkpoint.open` and :func:`find_matrices`, and for the text of
            ``calibration``; E106 for NaN or infinity.
        UsageError: E201 for a pattern that fits no matrix, E203 when the output holds something else or
            would replace the model folder, and for several precisions with ``calibration.refine``.
        UnsupportedError: E401 for an unknown architecture, a model that is quantized already, or one that
            cannot be calibrated.
        ResourceError: E601 when the disk is full; with ``calibration`` E602 to E604.
    """
    options = options or QuantizeOptions()
    if calibration is not None and calibration.refine:
        further.refuse_with(options.also_bits, "--refine: factors would fit one precision", "Leave it out.")
    checkpoint = _open(model_folder)
    check_apart(checkpoint.folder, output)
    check_side_files(checkpoint.folder)
    planned, packed = _plan(checkpoint, find_matrices(checkpoint), options)
    store = Finished(output, resume) if finished is None else finished
    with AtomicFolder(output, store if finished is None else None) as folder:
        solver = MatrixSolver(checkpoint, options, store, progress)
        progress.start("quantize", len(packed))
        if calibration is not None:
            from bcq.calibration.calibrate import calibrate

            calibrate(checkpoint, packed, solver, calibration, folder)
        _write_weights(checkpoint, packed, solver, folder / SINGLE)
        progress.done()
        done = [_done(matrix, solver.outcomes.get(matrix.stored), calibration) for matrix in planned]
        _write_json(folder / "config.json", _config(checkpoint, options, calibration))
        copy_side_files(checkpoint.folder, folder)
        _write_json(folder / REPORT, report(done, options))
        write_manifest(folder, command, options.seed)
        check_unchanged(checkpoint.stamps)
    return QuantizedBase.open(output)


def check_side_files(source: Path) -> None:
    """Checks the files that a run copies, so that a damaged or unsafe one is found before the work.

    Raises:
        InputError: E102 when one that should be is not a JSON object, E108 when it is a link out of the
            folder or has a second name.
    """
    for name in SIDE_FILES:
        if (source / name).is_symlink() or (source / name).exists():
            inner_file(source / name, source, "it would be copied")
    for name in _OBJECTS:
        if (source / name).is_file() and "auto_map" in read_json(source / name):
            raise InputError(
                "E105",
                f"{source / name} asks for code from the model folder (auto_map); it is never executed.",
                "Remove the entry, or save the tokenizer with a class that transformers itself has.",
            )


def copy_side_files(source: Path, target: Path) -> None:
    """Copies tokenizer and generation files, where they exist; symbolic links are followed."""
    for name in SIDE_FILES:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def report(matrices: list[PlannedMatrix], options: QuantizeOptions) -> dict[str, Any]:
    """The content of ``bcq_report.json`` of a base."""
    return {
        "format_version": contract.FORMAT_VERSION,
        "options": _options(options),
        "matrices": [_row(matrix) for matrix in matrices],
    }


def _row(matrix: PlannedMatrix) -> dict[str, Any]:
    """A matrix as the report shows it; the method stands there where some matrices were calibrated."""
    row = dataclasses.asdict(matrix)
    left = () if matrix.method else ("method", "calibrated_error")
    return {k: v for k, v in row.items() if k not in left and (k != "also" or v)}


def _open(model_folder: str | Path) -> Checkpoint:
    _check_config(Path(model_folder))
    checkpoint = Checkpoint.open(model_folder)
    section = checkpoint.config.get("quantization_config")
    if section:
        method = "bcq" if is_base(checkpoint.config) else section.get("quant_method", "an unknown method")
        raise UnsupportedError(
            "E401", f"{checkpoint.folder} is quantized already ({method}).", "Give the dense model."
        )
    return checkpoint


def _check_config(folder: Path) -> None:
    """What the rest relies on: an object for the quantization, at least one layer, no export."""
    config = read_config(folder)
    section = config.get("quantization_config")
    if section and not isinstance(section, dict):
        raise InputError(
            "E102", f"{folder / 'config.json'}: quantization_config is {section!r}, expected an object."
        )
    if is_base(config) and not (folder / SINGLE).is_file() and (folder / "model.onnx").is_file():
        raise UnsupportedError("E401", f"{folder} is an export already.", "Give the dense model.")
    for name in _LAYER_COUNTS:
        count = config.get(name, 1)
        if isinstance(count, int) and count < 1:
            raise InputError(
                "E102", f"{folder / 'config.json'}: {name} is {count}, expected at least 1 layer."
            )


def _check_leftover(checkpoint: Checkpoint, found: list[MatrixInfo]) -> None:
    """Refuses weights of layers that the model does not have.

    Other tensors without a parameter (buffers, heads, poolers) are harmless: no layer of the model has a
    matrix of their name. Layers that only predict further tokens are left out by transformers too.

    Raises:
        InputError: E107 with the first such tensor.
    """
    used = {info.stored for info in found}
    families = {_family(name) for name in used}
    strays = [name for name in checkpoint.names() if name not in used and _family(name) in families]
    strays = [name for name in strays if checkpoint.is_float(name) and len(checkpoint.shape(name)) >= 2]
    if strays and not checkpoint.config.get("num_nextn_predict_layers"):
        raise InputError(
            "E107",
            f"{checkpoint.folder} holds '{strays[0]}' ({len(strays)} such tensors), "
            "a weight of a layer that the model of config.json does not have.",
            "Check the number of layers in config.json.",
        )


def _family(name: str) -> str:
    """The name with stars for numbers of layers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _plan(
    checkpoint: Checkpoint, found: list[MatrixInfo], options: QuantizeOptions
) -> tuple[list[PlannedMatrix], dict[str, BaseMatrix]]:
    """All matrices in module order, and those to pack by their checkpoint names."""
    _check_leftover(checkpoint, found)
    check_overrides(options, [info.name for info in found])
    tied: dict[str, list[str]] = {}
    for info in found:
        if info.tied_to:
            tied.setdefault(info.tied_to, []).append(info.name)
    planned, packed = [], {}
    for info in found:
        if info.tied_to:
            reason = f"shares the matrix of {info.tied_to}"
            planned.append(
                PlannedMatrix(info.name, info.stored, "tied", info.rows, info.inputs, None, 0, 0, 0, reason)
            )
            continue
        matrix, base = _plan_one(checkpoint, info, tuple(tied.get(info.name, ())), options)
        planned.append(matrix)
        if base is not None:
            packed[info.stored] = base
    return planned, packed


def _plan_one(
    checkpoint: Checkpoint, info: MatrixInfo, tied: tuple[str, ...], options: QuantizeOptions
) -> tuple[PlannedMatrix, BaseMatrix | None]:
    choice = choice_for(info.name, options, info.kind == "embedding")
    dense_bytes = 4 * info.rows * info.inputs
    bits, reason = choice.bits, choice.reason
    if info.reason:
        bits, reason = None, info.reason
    elif not checkpoint.is_float(info.stored):
        bits, reason = None, f"it is stored as {checkpoint.dtype(info.stored)}"
    if bits is None:
        kept = checkpoint.entry(info.stored).nbytes
        left = (info.name, info.stored, info.kind, info.rows, info.inputs, None, 0, dense_bytes, kept)
        return PlannedMatrix(*left, reason=reason, requested=choice.requested and not info.reason), None
    group_size = group_size_for(choice, info.inputs)
    base = BaseMatrix(
        stored=info.stored, name=info.name, kind=info.kind, rows=info.rows, inputs=info.inputs, bits=bits,
        group_size=group_size, offset=choice.offset, transposed=info.transposed, tied=tied,
        code_hash=_NO_HASH,
        also=further.sizes(bits, group_size, choice.offset, info.inputs, options.also_bits),
    )  # fmt: skip
    row = (
        info.name,
        info.stored,
        info.kind,
        info.rows,
        info.inputs,
        bits,
        group_size,
        dense_bytes,
        base.packed_bytes,
    )
    also = tuple({"bits": bits, "group_size": size} for bits, size in base.also)
    return PlannedMatrix(*row, requested=choice.requested, offset=choice.offset, also=also), base


def _write_weights(
    checkpoint: Checkpoint, packed: dict[str, BaseMatrix], solver: MatrixSolver, path: Path
) -> None:
    """Streams all tensors into ``path``."""
    copies = {reader for matrix in packed.values() for reader in matrix.tied}  # what a file has twice
    names = [name for name in checkpoint.names() if name in packed or name not in copies]
    specs, finished = dict(_specs(checkpoint, names, packed)), dict(packed)
    with SafetensorsWriter(path, specs, metadata(list(packed.values()))) as writer:
        for name in names:
            if name not in packed:
                _check_finite(checkpoint, name)
                writer.write(name, checkpoint.raw(name))
                continue
            weight = solver(packed[name])
            finished[name] = dataclasses.replace(packed[name], code_hash=weight.code_hash())
            _write_tensors(writer, name, weight.tensors())
            for bits, other in solver.further(packed[name]).items():
                factors = {part: tensor for part, tensor in other.tensors().items() if part != "codes"}
                _write_tensors(writer, packed[name].prefix(bits), factors)
        writer.replace_metadata(metadata(list(finished.values())))


def _write_tensors(writer: SafetensorsWriter, prefix: str, tensors: Mapping[str, NDArray[Any]]) -> None:
    for part, tensor in tensors.items():
        little = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
        writer.write(f"{prefix}.{part}", little.tobytes())


def _specs(
    checkpoint: Checkpoint, names: Sequence[str], packed: dict[str, BaseMatrix]
) -> Iterator[tuple[str, TensorSpec]]:
    for name in names:
        if name in packed:
            yield from packed[name].specs().items()
        else:
            yield name, TensorSpec(checkpoint.dtype(name), checkpoint.shape(name))


def _check_finite(checkpoint: Checkpoint, name: str) -> None:
    if checkpoint.is_float(name) and not np.isfinite(checkpoint.read(name)).all():
        raise InputError(
            "E106",
            f"{name} holds NaN or infinity, expected finite weights.",
            "The checkpoint is damaged, or training diverged: use an earlier one.",
        )


def _done(
    matrix: PlannedMatrix, outcome: Outcome | None, calibration: CalibrationOptions | None
) -> PlannedMatrix:
    """A row of the plan with what came of it."""
    if outcome is None:
        return matrix
    return dataclasses.replace(
        matrix,
        relative_error=outcome.relative_error,
        method=outcome.method if calibration else "",
        calibrated_error=outcome.calibrated_error,
        also=tuple({**row, **_errors(outcome.also[row["bits"]], calibration)} for row in matrix.also),
    )


def _errors(outcome: Outcome, calibration: CalibrationOptions | None) -> dict[str, Any]:
    """What the report says of a further precision."""
    told = {"calibrated_error": outcome.calibrated_error} if calibration else {}
    return {"relative_error": outcome.relative_error, **told}


def _config(
    checkpoint: Checkpoint, options: QuantizeOptions, calibration: CalibrationOptions | None
) -> dict[str, Any]:
    section = {"quant_method": "bcq", "format_version": contract.FORMAT_VERSION, "layout": contract.LAYOUT}
    told = {"calibration": calibration.described()} if calibration else {}
    return {**checkpoint.config, "quantization_config": {**section, **_options(options), **told}}


def _options(options: QuantizeOptions) -> dict[str, Any]:
    told = {**dataclasses.asdict(options), "overrides": [str(override) for override in options.overrides]}
    return {name: value for name, value in told.items() if name != "also_bits" or value}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
