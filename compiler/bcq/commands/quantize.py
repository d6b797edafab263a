# SPDX-License-Identifier: Apache-2.0
"""``bcq quantize``: a model folder in, a quantized base out."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands.calibrating import (
    add_calibration_options,
    calibration_options,
    calibration_summary,
    calibration_text,
    without_places,
)
from bcq.commands.inspect import show_plan
from bcq.commands.options import add_quantize_options, add_verb, emit, progress, quantize_options, recorded

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers

EXAMPLES = """\
  bcq quantize models/gpt2 -o base --bits 3 --group-size 128
  bcq quantize models/gpt2 -o base --bits 2 --set 'h.*.mlp.*=4' --set 'wpe*=keep'
  bcq quantize models/gpt2 -o base --bits 2 --set 'wte*=4:g64' --set 'h.0.*=3:g0:offset'
  bcq quantize models/gpt2 -o base --bits 4 --also-bits 2,3  # one file for 2, 3 and 4 bits
  bcq quantize models/gpt2 -o base --dry-run
  bcq quantize models/gpt2 -o base --bits 2 --calibrate wiki.txt --workers 4
  bcq quantize models/gpt2 -o base --bits 2 --calibrate wiki.txt --refine 4  # slower, nearer
  bcq quantize models/gpt2 -o base --calibrate texts/ --scheduler tcp://10.0.0.1:8786
  bcq quantize models/gpt2 -o base --lora my-lora  # a PEFT checkpoint, merged first
  bcq quantize models/gpt2 -o base --resume        # after a kill, an empty battery or a full disk"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "quantize", "turn a model folder into a quantized base", EXAMPLES)
    verb.add_argument("model", type=Path, metavar="MODEL", help="Hugging Face folder with safetensors")
    verb.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    verb.add_argument("--dry-run", action="store_true", help="list what would happen and write nothing")
    verb.add_argument(
        "--resume", action="store_true", help="go on with the matrices that a stopped run has finished"
    )
    verb.add_argument(
        "--lora", type=Path, metavar="DIR", help="LoRA checkpoint of PEFT, merged into the model first"
    )
    verb.add_argument(
        "--allow-loss", action="store_true", help="accept less than half of the LoRA's change retained"
    )
    add_quantize_options(verb)
    add_calibration_options(verb)
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Quantizes and sums up."""
    options, calibration = quantize_options(arguments), calibration_options(arguments)
    if arguments.dry_run:
        return show_plan(arguments, arguments.model, options)
    from bcq import report
    from bcq.files.checkpoint import SINGLE

    began = time.monotonic()
    settings: dict[str, Any] = {
        "options": options,
        "progress": progress(arguments),
        "command": ["bcq", *_words(arguments)],
        "resume": arguments.resume,
        "calibration": calibration,
    }
    if arguments.lora is None:
        from bcq.quantize import quantize

        quantize(arguments.model, arguments.output, **settings)
    else:
        from bcq.exporting.lora import ExportLora, quantize_merged

        change = ExportLora.open(arguments.lora, arguments.allow_loss)
        quantize_merged(arguments.model, change, arguments.output, **settings)
    matrices = report.read_report(arguments.output) or []
    size = (arguments.output / SINGLE).stat().st_size
    summary = report.summarize(matrices, size, time.monotonic() - began)
    data = {
        "output": str(arguments.output),
        **summary.to_dict(),
        "matrices": report.matrix_rows(matrices),
    }
    text = report.summary_text(summary, matrices)
    if calibration is not None:
        data["calibration"] = calibration_summary(arguments.output)
        text += "\n" + calibration_text(data["calibration"])
    emit(arguments, data, text, result=False)
    return 0


def _words(arguments: argparse.Namespace) -> list[str]:
    """The words of the command for the manifest, without places."""
    words = without_places(recorded(arguments.words, arguments.model))
    return [Path(word).resolve().name if Path(word) == arguments.lora else word for word in words]
