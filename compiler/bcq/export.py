# SPDX-License-Identifier: Apache-2.0
"""A tuned model in, a folder with a packed ONNX model out: the whole story in one function."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq import report, report_page
from bcq.calibration.settings import CalibrationOptions
from bcq.checks.external import check_file
from bcq.errors import InputError, ResourceError, UnsupportedError, UsageError
from bcq.exporting.lora import ExportLora
from bcq.exporting.tasks import ExportTasks
from bcq.exporting.write import write_model, write_models
from bcq.files.atomic import AtomicFolder, check_apart, check_replaceable
from bcq.files.base import QuantizedBase, is_base
from bcq.files.checkpoint import Checkpoint, read_config
from bcq.files.inside import check_unchanged
from bcq.files.manifest import write_manifest
from bcq.frontends.abilities import check_abilities
from bcq.frontends.architectures import architecture_of
from bcq.matrices.plan import QuantizeOptions, check_overrides
from bcq.matrices.resume import Finished
from bcq.precisions.files import PATTERN
from bcq.precisions.graphs import FurtherGraphs, check_precisions, recorded
from bcq.progress import SILENT, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from bcq.adapters.adapter import Adapter
    from bcq.passes import PackReport, WeightSource

MODEL_FILE = "model.onnx"
REPORT_PAGE = "report.html"
LEAST_SHARE = 0.9  # of matrix bytes; less means that a kind of layer fell through
ATTENTIONS = ("fused", "plain")
KV_CACHES = ("float", "int8")
DTYPES = ("float32", "float16")
ACCURACY_LEVELS = (0, 1, 4)  # near-exact, float32, int8 activations; 2 and 3 are computed like 0
Source = Path | QuantizedBase


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        folder: the output folder.
        kind: ``"decoder"``, ``"encoder"``, ``"encoder-decoder"`` or ``"graph"`` (an ``.onnx`` file came in).
        report: every matrix, packed or not, with the reason.
        seconds: wall time.
        model_bytes: bytes of ``model.onnx`` and its data file.
    """

    folder: Path
    kind: str
    report: PackReport
    seconds: float
    model_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        matrices = self.report.matrices
        summary = report.summarize(matrices, self.model_bytes, self.seconds)
        return {
            "output": str(self.folder),
            "kind": self.kind,
            **summary.to_dict(),
            "matrices": report.matrix_rows(matrices),
        }


@dataclass(frozen=True)
class _GraphChoices:
    """What the caller chose about the graph, not about the weights."""

    fuse: bool
    accuracy_level: int
    attention: str | None
    int8_cache: bool
    half: bool


def export(
    source: str | Path | QuantizedBase,
    output: str | Path,
    options: QuantizeOptions | None = None,
    allow_partial: bool = False,
    progress: Progress = SILENT,
    command: Sequence[str] = ("bcq", "export"),
    fuse: bool = True,
    accuracy_level: int = 0,
    resume: bool = False,
    adapter: str | Path | Adapter | None = None,
    adapters: Sequence[str | Path | Adapter] = (),
    lora: str | Path | None = None,
    allow_loss: bool = False,
    calibration: CalibrationOptions | None = None,
    attention: str | None = None,
    kv_cache: str = "float",
    dtype: str = "float32",
) -> ExportResult:
    """Exports a model; the output folder appears whole or not at all.

    Args:
        source: quantized base (or its folder), Hugging Face folder, or ``.onnx`` file.
        output: folder to make; one that this program wrote before is replaced at the very end.
        options: how to quantize; defaults when None; must be None for a base.
        allow_partial: accept that less than 90 % of matrix bytes are packed.
        progress: told once a matrix.
        command: what to record in the manifest.
        fuse: join matrices that read the same activations (Q, K and V, say); results stay the same.
        accuracy_level: of every product: 0 near-exact, 1 float32, 4 int8 activations (``ops/README.md``).
        resume: go on with the matrices that a stopped run of the same output has finished.
        adapter: a task whose values the model shall hold.
        adapters: tasks that the model shall serve, one per request; their tensors become inputs of the graph
            with the base's values as defaults.
        lora: a LoRA checkpoint of PEFT. A dense model is merged with it and quantized anew; a base keeps its
            codes and gets the factors that come closest.
        allow_loss: accept that less than half of the LoRA's change is retained.
        calibration: text on which the matrices of a model folder are solved.
        attention: of a decoder from a folder: ``"fused"``, one operator a layer, which only onnxruntime has;
            ``"plain"``, in standard operators; None for fused where that is possible.
        kv_cache: of a decoder with fused attention: ``"float"``, the type of its activations, or ``"int8"``,
            a quarter of the bytes, with scales measured on texts that the model makes up.
        dtype: of activations and of what is not packed, ``"float32"`` or ``"float16"``; an ``.onnx`` file has
            its own.

    Raises:
        InputError: E101 to E109 for a source that is missing, damaged or unsafe, E301 and E302 for an adapter
            that does not fit.
        UsageError: E201 for a pattern that fits no matrix, E202 for an unknown accuracy level, attention,
            cache or type, E203 for options with a base, for an output folder that holds something else, for
            one that would replace the source, for several precisions of an ``.onnx`` file or with tasks, and
            for an int8 cache or float16 of what cannot have it.
        UnsupportedError: E401 for an architecture that is not exported or a source that is an export
            already, E402 below 90 %.
        ParityFailure: E503 when too little of a LoRA's change is retained.
        ResourceError: E601 when the disk is full, E603 when a package or the library is missing.
    """
    began = time.monotonic()
    asked = check_export(
        source, output, options, fuse=fuse, accuracy_level=accuracy_level, adapter=adapter, adapters=adapters,
        lora=lora, allow_loss=allow_loss, calibration=calibration, attention=attention, kv_cache=kv_cache,
        dtype=dtype,
    )  # fmt: skip
    opened, graph, tasks, change = asked.source, asked.graph, asked.tasks, asked.change
    if change is not None and isinstance(opened, QuantizedBase):
        tasks = change.baked(opened, tasks)
    finished = Finished(output, resume)
    with AtomicFolder(output, finished) as folder:
        if isinstance(opened, QuantizedBase):
            kind, packed = _export_base(opened, folder, progress, graph, tasks)
        elif _is_graph(opened):
            chosen = options or QuantizeOptions()
            kind, packed = "graph", _export_file(opened, folder, chosen, progress, graph, finished)
        else:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".base-") as temporary:
                base = _quantized(
                    opened, Path(temporary) / "base", options, progress, finished, change, calibration
                )
                tasks.check_fits(base)
                kind, packed = _export_base(base, folder, progress, graph, tasks)
        _check_share(packed, allow_partial)
        recorded = _recorded_options(opened, options, calibration)
        if graph.int8_cache:
            recorded["kv_cache"] = "int8"
        if graph.half:
            recorded["dtype"] = dtype
        text = report.report_json(packed.matrices, recorded, packed.fusions)
        (folder / report.REPORT_FILE).write_text(text, encoding="utf-8")
        report_page.write_page([folder], folder / REPORT_PAGE, names=["This export"])
        write_manifest(folder, command, int(recorded.get("seed", 0)))
        model_bytes = sum(path.stat().st_size for path in folder.glob(PATTERN))
    return ExportResult(Path(output), kind, packed, time.monotonic() - began, model_bytes)


@dataclass(frozen=True)
class Asked:
    """What an export was asked for, after `check_export`."""

    source: Source
    graph: _GraphChoices
    tasks: ExportTasks
    change: ExportLora | None


def check_export(
    source: str | Path | QuantizedBase,
    output: str | Path,
    options: QuantizeOptions | None,
    *,
    fuse: bool = True,
    accuracy_level: int = 0,
    adapter: str | Path | Adapter | None = None,
    adapters: Sequence[str | Path | Adapter] = (),
    lora: str | Path | None = None,
    allow_loss: bool = False,
    calibration: CalibrationOptions | None = None,
    attention: str | None = None,
    kv_cache: str = "float",
    dtype: str = "float32",
) -> Asked:
    """Refuses what cannot be exported before any work; arguments and errors as of `export`."""
    graph = _graph_choices(fuse, accuracy_level, attention, kv_cache, dtype)
    _check_calibrates(source, calibration)
    opened = _opened(source, options)
    if graph.half and isinstance(opened, Path) and _is_graph(opened):
        raise UsageError("E203", f"--dtype float16: {opened} has types of its own, which are kept.")
    _check_tools(opened)
    tasks = ExportTasks.open(adapter, adapters, output)
    change = None if lora is None else ExportLora.open(lora, allow_loss)
    _check_able(opened, graph, tasks)
    _check_tasks(tasks, opened, change)
    check_precisions(opened, options, tasks=bool(tasks.all) or change is not None)
    check_apart(opened if isinstance(opened, Path) else opened.folder, output)
    check_replaceable(Path(output))
    return Asked(opened, graph, tasks, change)


def _opened(source: str | Path | QuantizedBase, options: QuantizeOptions | None) -> Source:
    """The base where the source is one, else the path of a model folder or ``.onnx`` file."""
    from bcq.quantize import check_side_files

    if not isinstance(source, QuantizedBase):
        source = Path(source)
        if _is_graph(source):
            if not source.is_file():
                raise InputError(
                    "E101", f"the file {source} does not exist.", "Give the path of an ONNX file."
                )
            return source
        _check_not_export(source)
        config = read_config(source)
        architecture_of(config)
        if not is_base(config):
            Checkpoint.open(source)
            check_side_files(source)
            return source
        source = QuantizedBase.open(source)
    if options is not None:
        raise UsageError(
            "E203",
            f"{source.folder} is quantized already; options of quantization do not apply.",
            "Leave them out, or export the dense model.",
        )
    architecture_of(source.config)
    check_side_files(source.folder)
    return source


def _check_calibrates(source: str | Path | QuantizedBase, calibration: CalibrationOptions | None) -> None:
    """Refuses a text for what has no torch model to run it."""
    path = source.folder if isinstance(source, QuantizedBase) else Path(source)
    if calibration is not None and (_is_graph(path) or is_base(read_config(path))):
        raise UsageError(
            "E203",
            f"--calibrate needs a dense model folder, {path} is a base or a graph.",
            "Calibrate when it is quantized: `bcq quantize MODEL -o base --calibrate TEXT`.",
        )


def _is_graph(source: Path) -> bool:
    """Whether a path is meant as an ``.onnx`` file."""
    return source.suffix.lower() == ".onnx" and not source.is_dir()


def _check_not_export(folder: Path) -> None:
    """Refuses what this program exported before; a base holds ``model.safetensors`` and no graph."""
    if (folder / MODEL_FILE).is_file() and (folder / report.REPORT_FILE).is_file():
        raise UnsupportedError(
            "E401", f"{folder} is an export already.", "Give the base or the dense model that it was made of."
        )


def _check_tools(source: Source) -> None:
    """Raises ResourceError E603 now rather than after the work: for a missing package or operator library."""
    try:
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as fault:
        raise ResourceError(
            "E603",
            f"the package {fault.name} is not installed; exporting needs it.",
            "pip install 'onnx-bcq[compile]'",
        ) from fault
    if not (isinstance(source, Path) and _is_graph(source)):
        from bcq.runtime import library_path

        library_path()


def _check_tasks(tasks: ExportTasks, source: Source, change: ExportLora | None) -> None:
    """Refuses what does not fit before any work, as far as that is known."""
    if isinstance(source, QuantizedBase):
        tasks.check_fits(source)
    elif (tasks.all or change is not None) and _is_graph(source):
        raise UsageError(
            "E203", f"{source} has no names that an adapter could fit.", "Export a base or a model folder."
        )


def _quantized(
    model: Path,
    folder: Path,
    options: QuantizeOptions | None,
    progress: Progress,
    finished: Finished,
    change: ExportLora | None,
    calibration: CalibrationOptions | None,
) -> QuantizedBase:
    from bcq.quantize import quantize

    how: dict[str, Any] = {"progress": progress, "finished": finished, "calibration": calibration}
    if change is None:
        return quantize(model, folder, options, **how)
    with change.merged(model, folder.parent) as merged:
        base = quantize(merged, folder, options, **how)
    change.check(base, model)
    return base


def _graph_choices(
    fuse: bool, accuracy_level: int, attention: str | None, kv_cache: str, dtype: str
) -> _GraphChoices:
    """What was asked for, checked; an int8 cache asks for fused attention."""
    _check_known("accuracy level", accuracy_level, ACCURACY_LEVELS)
    _check_known("attention", attention, (None, *ATTENTIONS))
    _check_known("kv cache", kv_cache, KV_CACHES)
    _check_known("dtype", dtype, DTYPES)
    int8 = kv_cache == "int8"
    if int8 and attention == "plain":
        raise UsageError(
            "E203",
            "--kv-cache int8 needs fused attention: no standard operator reads such a cache.",
            "Leave one of the two options away.",
        )
    return _GraphChoices(fuse, accuracy_level, "fused" if int8 else attention, int8, dtype == "float16")


def _check_known(what: str, got: object, known: Sequence[object]) -> None:
    if got not in known:
        expected = ", ".join(str(value) for value in known if value is not None)
        raise UsageError("E202", f"{what}: got {got!r}, expected one of {expected}.")


def _check_able(source: Source, graph: _GraphChoices, tasks: ExportTasks) -> None:
    """Refuses what the source's kind of model cannot have; of a graph, an int8 cache without description."""
    from bcq.frontends.genai_folder import GenaiFolder

    if not (isinstance(source, Path) and _is_graph(source)):
        config = source.config if isinstance(source, QuantizedBase) else read_config(source)
        fused = graph.attention == "fused" and not graph.int8_cache
        check_abilities(config, int8_cache=graph.int8_cache, fused=fused, tasks=bool(tasks.swappable))
    elif graph.int8_cache and GenaiFolder.around(source) is None:
        raise UsageError(
            "E203", f"--kv-cache int8: {source} has no genai_config.json beside it that says how to run it."
        )


def _export_base(
    base: QuantizedBase, folder: Path, progress: Progress, graph: _GraphChoices, tasks: ExportTasks
) -> tuple[str, PackReport]:
    """Model, configuration and tokenizer of a base; the kind, and what was packed."""
    from bcq.exporting.describe import write_description
    from bcq.frontends import hf
    from bcq.passes.report import joined
    from bcq.quantize import copy_side_files

    skeleton = hf.skeleton(base, graph.attention, graph.half)
    models: dict[str, ir.Model] = {}
    reports: list[PackReport] = []
    graphs = skeleton.graphs()
    tasks.before_passes(list(graphs.values()))
    for name, model in graphs.items():
        further = FurtherGraphs(base, model, name)
        reports.append(_packed(model, tasks.weights(base), progress, graph))
        models |= further.models(model, lambda other, source: _packed(other, source, SILENT, graph))
    tasks.after_passes(skeleton.model, base, folder)
    write_models({folder / name: model for name, model in models.items()})
    _write_json(folder / "config.json", base.config)
    copy_side_files(base.folder, folder)
    write_description(base, skeleton, folder)
    if graph.int8_cache:
        _shrink_caches(folder, models)
    check_unchanged(base.checkpoint.stamps)
    return skeleton.architecture.kind, joined(reports)


def _export_file(
    path: Path,
    folder: Path,
    options: QuantizeOptions,
    progress: Progress,
    graph: _GraphChoices,
    finished: Finished,
) -> PackReport:
    """An ``.onnx`` file; its weights are solved one by one and wait on the disk, not in memory."""
    from bcq.frontends import onnx_file
    from bcq.frontends.genai_folder import GenaiFolder
    from bcq.passes import SolveOnTheFly
    from bcq.runtime import library_path

    stamps = check_file(path)
    around = GenaiFolder.around(path)
    model = onnx_file.load(path)
    if around is not None:
        around.name_sizes(model)
    with onnx_file.explained(path):
        packed = _packed(model, SolveOnTheFly(options, finished), progress, graph)
        write_model(model, folder / MODEL_FILE)
    if around is not None:
        around.write(folder, library_path(), MODEL_FILE)
    if graph.int8_cache:
        _shrink_caches(folder, [MODEL_FILE])
    check_unchanged(stamps)
    check_overrides(options, [record.name for record in packed.matrices])
    return packed


def _shrink_caches(folder: Path, names: Iterable[str]) -> None:
    from bcq.frontends.cache_type import make_int8

    for name in names:
        make_int8(folder / name)


def _packed(model: ir.Model, weights: WeightSource, progress: Progress, graph: _GraphChoices) -> PackReport:
    from bcq import passes

    pipeline = passes.PIPELINE if graph.fuse else passes.UNFUSED
    return passes.run(model, weights, progress, pipeline, graph.accuracy_level)


def _check_share(packed: PackReport, allow_partial: bool) -> None:
    share = packed.packed_share
    if share >= LEAST_SHARE or allow_partial:
        return
    dense = [record for record in packed.matrices if not record.packed and not record.requested]
    largest = max(dense, key=lambda record: record.dense_bytes, default=None)
    why = f"; the largest that is not: '{largest.name}' ({largest.reason})" if largest else ""
    raise UnsupportedError(
        "E402",
        f"only {share:.0%} of matrix bytes can be packed, expected at least {LEAST_SHARE:.0%}{why}.",
        "`bcq inspect` lists them all; --allow-partial accepts it.",
    )


def _recorded_options(
    source: Source, options: QuantizeOptions | None, calibration: CalibrationOptions | None
) -> dict[str, Any]:
    """The options for report and manifest; a base remembers its own."""
    if isinstance(source, QuantizedBase):
        section = source.config.get("quantization_config", {})
        return {key: value for key, value in section.items() if key != "quant_method"}
    chosen = options or QuantizeOptions()
    return {
        "bits": chosen.bits,
        "group_size": chosen.group_size,
        "offset": chosen.offset,
        "method": chosen.method,
        "embeddings": chosen.embeddings,
        "overrides": [str(override) for override in chosen.overrides],
        "seed": chosen.seed,
        **recorded(chosen),
        **({"calibration": calibration.described()} if calibration else {}),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
