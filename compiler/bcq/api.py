# SPDX-License-Identifier: Apache-2.0
"""The Python interface: `quantize` and `export` with plain keyword options."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.budget.asked import options_of
from bcq.calibration import CalibrationOptions
from bcq.errors import UsageError
from bcq.progress import SILENT, Progress

if TYPE_CHECKING:
    from bcq.adapters.adapter import Adapter
    from bcq.export import ExportResult
    from bcq.files.base import QuantizedBase


def quantize(
    model: str | Path,
    output: str | Path | None = None,
    *,
    resume: bool = False,
    calibrate: str | Path | None = None,
    workers: int | None = None,
    refine: int = 0,
    progress: Progress = SILENT,
    **options: Any,
) -> QuantizedBase:
    """Quantizes a model folder.

    Args:
        model: Hugging Face folder with safetensors.
        output: where the quantized base goes; None keeps it in a temporary folder until the program ends.
        resume: go on with the matrices that a stopped run of the same output has finished.
        calibrate: text on which matrices are solved, as :class:`bcq.calibration.CalibrationOptions` takes it.
        workers: processes that solve them.
        refine: passes over the text in which their factors are trained block by block then.
        progress: told about each matrix.
        **options: fields of `bcq.matrices.plan.QuantizeOptions`, such as ``bits=3, group_size=128, seed=0``;
            or a target for which they are chosen, as on the command line: ``target_bpw=2.5``,
            ``target_size="40MB"`` or ``target_latency="5ms", cost_table=FILE``, with ``sensitivity_text`` and
            ``sensitivity``.

    Returns:
        The quantized base, ready for `export`.

    Raises:
        BcqError: see `bcq.quantize.quantize`.
    """
    from bcq.quantize import quantize as quantize_folder

    folder = Path(output) if output is not None else _temporary_folder() / "base"
    return quantize_folder(
        Path(model),
        folder,
        options_of(model, options, calibrate, progress)[0],
        progress=progress,
        resume=resume,
        calibration=_calibration(calibrate, workers, refine),
    )


def export(
    source: str | Path | QuantizedBase,
    output: str | Path,
    *,
    allow_partial: bool = False,
    fuse: bool = True,
    accuracy_level: int = 0,
    resume: bool = False,
    adapter: str | Path | Adapter | None = None,
    adapters: Sequence[str | Path | Adapter] = (),
    lora: str | Path | None = None,
    allow_loss: bool = False,
    calibrate: str | Path | None = None,
    workers: int | None = None,
    refine: int = 0,
    attention: str | None = None,
    kv_cache: str = "float",
    dtype: str = "float32",
    progress: Progress = SILENT,
    **options: Any,
) -> ExportResult:
    """Exports a quantized base, a model folder or an ``.onnx`` file.

    Args:
        source: quantized base (or its folder), Hugging Face folder, or ``.onnx`` file.
        output: folder to write; an older export there is replaced as a whole.
        allow_partial: accept less than 90 % of matrix bytes packed.
        fuse: join matrices that read the same activations into one operator; results stay the same.
        accuracy_level: of every product: 0 near-exact, 1 float32, 4 int8 activations (``ops/README.md``).
        resume: go on with the matrices that a stopped run of the same output has finished.
        adapter: a task (or its folder) whose values the model shall hold.
        adapters: tasks that the model shall serve, one per request.
        lora: LoRA checkpoint of PEFT: merged into a dense model, or said with the codes of a base.
        allow_loss: accept that less than half of the LoRA's change is retained.
        calibrate: text on which the matrices of a model folder are solved.
        workers: processes that solve them.
        refine: passes over the text in which their factors are trained block by block then.
        attention: of a decoder: ``"fused"``, one operator a layer that onnxruntime alone has, ``"plain"``,
            standard operators, or None for fused where possible.
        kv_cache: of a decoder with fused attention: ``"float"``, or ``"int8"``, a quarter of the bytes.
        dtype: of activations, ``"float32"`` or ``"float16"``; an ``.onnx`` file has its own.
        progress: told about each stage.
        **options: as for `quantize`; not allowed for a base, which is quantized already.

    Returns:
        Where the files are and what was packed.

    Raises:
        BcqError: see `bcq.export.export`.
    """
    from bcq.export import export as export_source

    path = source if isinstance(source, str | Path) else source.folder
    chosen = options_of(path, options, calibrate, progress)[0] if options else None
    return export_source(
        source,
        Path(output),
        chosen,
        allow_partial=allow_partial,
        progress=progress,
        fuse=fuse,
        accuracy_level=accuracy_level,
        resume=resume,
        adapter=adapter,
        adapters=adapters,
        lora=lora,
        allow_loss=allow_loss,
        calibration=_calibration(calibrate, workers, refine),
        attention=attention,
        kv_cache=kv_cache,
        dtype=dtype,
    )


def tune(
    base: str | Path | QuantizedBase,
    data: str | Path,
    output: str | Path | None = None,
    *,
    name: str = "",
    dev: str | Path | None = None,
    teacher: str | Path | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> Adapter:
    """Trains the scaling factors of a quantized base for one task.

    Args:
        base: quantized base, or its folder; it is not changed.
        data: ``.jsonl`` or tab-separated training examples, see `bcq.tuning.data.read_examples`.
        output: folder of the adapter; None writes none.
        name: of the adapter; that of the output, or of the data file, when empty.
        dev: examples to measure on, before and after; the figures stand in the adapter's metadata.
        teacher: dense model folder that the task ``distill`` follows.
        resume: go on from the checkpoint that a stopped run of the same output has left.
        progress: told about each update.
        **options: fields of `bcq.tuning.options.TuneOptions`, such as ``epochs=3, learning_rate=1e-2``.

    Returns:
        The adapter.

    Raises:
        BcqError: see `bcq.tuning.tune.tune`.
    """
    from bcq.tuning.options import TuneOptions
    from bcq.tuning.tune import tune as tune_base

    result = tune_base(
        base,
        data,
        output,
        options=TuneOptions(**options),
        name=name,
        dev=dev,
        teacher=teacher,
        resume=resume,
        progress=progress,
    )
    return result.adapter


def _calibration(calibrate: str | Path | None, workers: int | None, refine: int) -> CalibrationOptions | None:
    if calibrate is not None:
        return CalibrationOptions(Path(calibrate), workers=workers, refine=refine)
    if refine:
        raise UsageError("E202", f"refine: got {refine} without calibrate.", "Name a text to refine on.")
    return None


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="bcq-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
