# SPDX-License-Identifier: Apache-2.0
"""``bcq export``: a quantized base, a model folder or an ``.onnx`` file in, a packed ONNX model out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands.calibrating import add_calibration_options, calibration_options, without_places
from bcq.commands.options import (
    add_quantize_options,
    add_verb,
    emit,
    given,
    progress,
    quantize_options,
    recorded,
)

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers
    from bcq.matrices.plan import QuantizeOptions

EXAMPLES = """\
  bcq export base -o out
  bcq export models/gpt2 -o out --bits 3 --group-size 128
  bcq export model.onnx -o out --bits 4 --allow-partial
  bcq export models/gpt2 -o out --bits 3 --dry-run               # every matrix, its bits and bytes
  bcq export base -o out --adapter adapters/e2e                  # a model for this task
  bcq export base -o out --adapters adapters/e2e adapters/sum    # one model, a task per request"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "export", "write a packed ONNX model", EXAMPLES)
    verb.add_argument("source", type=Path, metavar="SOURCE", help="base, model folder or .onnx file")
    verb.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    verb.add_argument("--allow-partial", action="store_true", help="accept less than 90 %% packed")
    verb.add_argument(
        "--no-fuse",
        dest="fuse",
        action="store_false",
        help="one operator a matrix, also where several (Q, K, V) read the same activations",
    )
    verb.add_argument(
        "--accuracy-level",
        type=int,
        choices=(0, 1, 4),
        default=0,
        help="0 near-exact (default), 1 float32, slower; 4 int8 activations, faster with errors of 1 %%",
    )
    verb.add_argument(
        "--attention",
        choices=("fused", "plain"),
        help="of a decoder: one operator a layer (default; onnxruntime alone has it), or standard operators",
    )
    verb.add_argument(
        "--kv-cache",
        choices=("float", "int8"),
        default="float",
        help="of a decoder: float, or int8: a quarter of the bytes, faster steps, slower long prompts",
    )
    verb.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of activations, cache and logits; float16 is slower on a CPU (an .onnx file keeps its own)",
    )
    tasks = verb.add_mutually_exclusive_group()
    tasks.add_argument("--adapter", type=Path, metavar="DIR", help="a task whose values the model shall hold")
    tasks.add_argument(
        "--adapters",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="tasks that one model shall serve, swapped per request",
    )
    verb.add_argument(
        "--lora",
        type=Path,
        metavar="DIR",
        help="LoRA checkpoint of PEFT: merged into a dense MODEL, or said with the codes of a base",
    )
    verb.add_argument(
        "--allow-loss", action="store_true", help="accept less than half of the LoRA's change retained"
    )
    verb.add_argument("--dry-run", action="store_true", help="list what would happen and write nothing")
    verb.add_argument(
        "--resume", action="store_true", help="go on with the matrices that a stopped run has finished"
    )
    add_quantize_options(verb)
    add_calibration_options(verb)
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exports and sums up."""
    options = quantize_options(arguments) if given(arguments) else None
    if arguments.dry_run:
        return _show_plan(arguments, options)
    from bcq import report
    from bcq.export import export

    result = export(
        arguments.source,
        arguments.output,
        options,
        allow_partial=arguments.allow_partial,
        progress=progress(arguments),
        command=["bcq", *without_places(recorded(_by_name(arguments), arguments.source))],
        resume=arguments.resume,
        **_choices(arguments),
    )
    matrices = report.rows_of(result.report.matrices)
    summary = report.summarize(matrices, result.model_bytes, result.seconds)
    data = {
        "output": str(result.folder),
        "kind": result.kind,
        **summary.to_dict(),
        "matrices": report.matrix_rows(matrices),
    }
    emit(arguments, data, report.summary_text(summary, matrices), result=False)
    return 0


def _choices(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides, besides the options of quantization, what is made."""
    names = (
        "fuse", "accuracy_level", "adapter", "adapters", "lora", "allow_loss", "attention", "kv_cache",
        "dtype",
    )  # fmt: skip
    chosen = {name: getattr(arguments, name) for name in names}
    return {**chosen, "calibration": calibration_options(arguments)}


def _show_plan(arguments: argparse.Namespace, options: QuantizeOptions | None) -> int:
    """With --dry-run: what would become of every matrix."""
    from bcq.commands.inspect import show_rows
    from bcq.matrices.listing import planned_export

    rows = planned_export(arguments.source, arguments.output, options, **_choices(arguments))
    show_rows(arguments, arguments.source, rows)
    return 0


def _by_name(arguments: argparse.Namespace) -> list[str]:
    """The words of the command; of adapters and a LoRA only their last names: places change nothing."""
    places = {arguments.adapter, *arguments.adapters, arguments.lora} - {None}
    return [Path(word).resolve().name if Path(word) in places else word for word in arguments.words]
