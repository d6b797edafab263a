# SPDX-License-Identifier: Apache-2.0
"""A quantized base and a task's data in, an adapter out."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bcq.nn
from bcq.adapters.adapter import Adapter, Alphas, check_name
from bcq.errors import UnsupportedError, UsageError
from bcq.files.base import BaseMatrix, QuantizedBase
from bcq.files.manifest import file_hash
from bcq.frontends.architectures import Architecture, architecture_of
from bcq.frontends.names import stored_names
from bcq.generation.text import open_tokenizer
from bcq.nn.decode import untiled
from bcq.nn.packed import PARTS, PackedMatrix
from bcq.progress import SILENT, Progress
from bcq.tuning.data import Example, read_examples
from bcq.tuning.encoder import DistillTask, Embedder, LabelTask, SimilarityTask
from bcq.tuning.language import LanguageTask
from bcq.tuning.load import context_of, end_of, load_dense, load_packed
from bcq.tuning.options import TuneOptions
from bcq.tuning.train import Task, train

_NOT_IN_KEY = ("checkpoint_every", "evaluate_every")


@dataclass(frozen=True)
class TuneResult:
    """What a run made.

    Attributes:
        adapter: the task's numbers.
        figures: ``train_loss`` and figures on the dev file, before (``start_nll``) and after (``dev_nll``).
        trained: how many numbers were trained.
        total: how many weights the dense model has.
        updates: how many updates were made.
        seconds: how long it took.
    """

    adapter: Adapter
    figures: dict[str, float]
    trained: int
    total: int
    updates: int
    seconds: float


def tune(
    base: str | Path | QuantizedBase,
    data: str | Path,
    output: str | Path | None = None,
    *,
    options: TuneOptions | None = None,
    name: str = "",
    dev: str | Path | None = None,
    teacher: str | Path | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> TuneResult:
    """Trains a task's factors on a base whose codes stay as they are.

    Args:
        base: what ``bcq quantize`` wrote.
        data: training examples, see `read_examples`.
        output: folder of the adapter; None writes none (and keeps no checkpoints).
        options: task, rate, updates and so on; the defaults when None.
        name: of the adapter; that of the output folder, or of the data file, when empty.
        dev: examples to measure on, before and after.
        teacher: folder of the dense model whose embeddings ``distill`` follows.
        resume: go on from the checkpoint of a stopped run with the same output; the result is the same.
        progress: told once an update.

    Raises:
        InputError: E101 to E109 for a base or data that cannot be used; E106 when training diverges.
        UsageError: E202 for options, E203 when the output holds something else.
        UnsupportedError: E401 for a task that the base's architecture cannot do.
    """
    began = time.monotonic()
    options = options or TuneOptions()
    base = base if isinstance(base, QuantizedBase) else QuantizedBase.open(base)
    data = Path(data)
    name = name or (Path(output).name if output is not None else data.name.partition(".")[0])
    check_name(name)
    examples = read_examples(data, options)
    held_out = read_examples(Path(dev), options) if dev is not None else []
    check_codes(base)
    architecture = architecture_of(base.config)
    if architecture.kind == "encoder-decoder":
        raise UnsupportedError(
            "E401",
            f"{base.folder}: {architecture.class_name} cannot be tuned: only decoders and encoders can.",
            "Tune the dense model, then quantize it; or export it with a LoRA.",
        )
    model = load_packed(base, architecture)
    bcq.nn.train_only(model, options.train)
    for matrix in bcq.nn.packed_matrices(model).values():
        matrix.rule = bcq.nn.Rule(scaled=options.group_scaling)
    task = make_task(base, architecture, model, options, examples, teacher)
    start = {f"start_{k}": v for k, v in task.evaluate(model, held_out).items()} if held_out else {}
    checkpoint = (
        None if output is None else Path(output).with_name(f".{Path(output).name}.tuning.safetensors")
    )
    figures = train(
        model, task, options, progress, checkpoint, _key(base, data, options), resume=resume, dev=held_out
    )
    updates = options.updates(len(task))
    adapter = adapter_of(model, base, name, _notes(options, task, updates, {**start, **figures}))
    if output is not None:
        adapter.save(output)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    trained = bcq.nn.trained_numbers(model) + sum(p.numel() for p in task.parameters().values())
    total = bcq.nn.model_numbers(model)
    return TuneResult(adapter, {**start, **figures}, trained, total, updates, time.monotonic() - began)


def check_codes(base: QuantizedBase) -> None:
    """Reads all codes once.

    Raises:
        InputError: E109 for a matrix whose codes do not have the recorded hash.
    """
    for stored in base.names():
        base.packed(stored)


def make_task(
    base: QuantizedBase,
    architecture: Architecture,
    model: Any,
    options: TuneOptions,
    examples: list[Example],
    teacher: str | Path | None = None,
) -> Task:
    """The task that the options name, for this kind of model.

    Raises:
        UnsupportedError: E401 for one that this kind cannot do.
        UsageError: E202 for a teacher too many or too few.
    """
    if (teacher is not None) != (options.task == "distill"):
        raise UsageError("E202", "a teacher goes with the task 'distill', which needs one.")
    tokenizer, context = open_tokenizer(base.folder), context_of(model.config)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if architecture.kind == "decoder":
        if options.task not in ("lm", "classification"):
            raise _cannot(options, architecture, "an encoder")
        return LanguageTask(tokenizer, end_of(base, model.config), context, options, examples)
    if options.task == "lm":
        raise _cannot(options, architecture, "a decoder")
    embed = Embedder(tokenizer, base.folder, min(context, options.max_length or context))
    if options.task == "similarity":
        return SimilarityTask(embed, examples)
    if teacher is not None:
        return DistillTask(embed, load_dense(Path(teacher)), examples)
    return LabelTask(embed, model.config.hidden_size, options, examples)


def adapter_of(model: torch.nn.Module, base: QuantizedBase, name: str, notes: dict[str, Any]) -> Adapter:
    """The trained numbers of a model as an adapter of its base."""
    alphas = {}
    for parameter_name, matrix in bcq.nn.packed_matrices(model).items():
        if any(parameter.requires_grad for parameter in matrix.parameters()):
            found = base.find(parameter_name)
            assert found is not None  # the model was made from this base
            alphas[found.stored] = _alphas(matrix, found)
    stored = stored_names(model, base.checkpoint.names(), base.folder)
    factors = tuple(f".weight.{part}" for part in PARTS)
    dense = {
        stored[parameter_name]: parameter.detach().float().numpy()
        for parameter_name, parameter in model.named_parameters()
        if parameter.requires_grad and not parameter_name.endswith(factors)
    }
    return Adapter(name, base.base_hash, alphas, dense, notes)


def _alphas(matrix: PackedMatrix, described: BaseMatrix) -> Alphas:
    shape = matrix.layout

    def plain(tiled: torch.Tensor) -> Any:
        return untiled(tiled.detach(), shape).to(torch.float16).numpy()

    rest = None
    if matrix.alpha_rest.requires_grad:
        planes = [plain(matrix.alpha_rest[:, :, plane]) for plane in range(described.bits - 1)]
        rest = torch.stack([torch.from_numpy(plane) for plane in planes]).numpy()
    offset = plain(matrix.offset) if matrix.offset.requires_grad else None
    return Alphas(plain(matrix.alpha_1), rest, offset)


def _notes(options: TuneOptions, task: Task, updates: int, figures: dict[str, float]) -> dict[str, Any]:
    chosen = {name: value for name, value in options.to_dict().items() if name not in _NOT_IN_KEY}
    return {**chosen, "method": "alpha tuning", "updates": updates, "figures": figures, **task.notes()}


def _key(base: QuantizedBase, data: Path, options: TuneOptions) -> str:
    """Everything that decides what a run ends with."""
    chosen = {name: value for name, value in options.to_dict().items() if name not in _NOT_IN_KEY}
    said = json.dumps([base.base_hash, file_hash(data), chosen], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _cannot(options: TuneOptions, architecture: Architecture, needed: str) -> UnsupportedError:
    return UnsupportedError(
        "E401",
        f"the task '{options.task}' needs {needed}; {architecture.class_name} is not one.",
        "See --task.",
    )
