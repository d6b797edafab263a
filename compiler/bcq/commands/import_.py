# SPDX-License-Identifier: Apache-2.0
"""``bcq import``: weights that another program quantized, taken over as they are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.commands.options import add_verb, emit, progress, recorded

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers
    from bcq.importers.run import ImportResult

EXAMPLES = """\
  bcq import models/llama-gptq -o base                  # GPTQ, AWQ, LUT-GEMM or AnyBCQ -> a quantized base
  bcq import models/llama-awq -o base --inexact round   # float16 offsets, the error is measured
  bcq import model-int4.onnx -o out                     # MatMulNBits nodes -> BcqMatMul
  bcq import out -o int4 --to matmulnbits               # and back, where the factors are an integer grid
  bcq import out -o web --to matmulnbits --inexact round  # a twin for WebGPU: nearest grid, with its error"""

_FORMATS = (
    "auto",
    "gptq",
    "awq",
    "lut-gemm",
    "anybcq",
    "matmulnbits",
)  # as bcq.importers.run, which is heavy


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "import", "take over weights that another program quantized", EXAMPLES)
    verb.add_argument("source", type=Path, metavar="SOURCE", help="quantized model folder or .onnx file")
    verb.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    verb.add_argument("--format", choices=_FORMATS, default="auto", help="of the source (default: look)")
    verb.add_argument(
        "--bits",
        type=int,
        metavar="Q",
        help="which precision of an AnyBCQ one (default: highest); of a rounded twin, 4 (default) or 8",
    )
    verb.add_argument(
        "--inexact",
        choices=("refuse", "plane", "round"),
        default="refuse",
        help="where float16 factors cannot hold the values, or MatMulNBits the factors: refuse (default), "
        "store what is left as one plane more (exact), or round and say by how much",
    )
    verb.add_argument(
        "--to",
        choices=("bcq", "matmulnbits"),
        default="bcq",
        help="matmulnbits turns an export into MatMulNBits",
    )
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Imports and sums up."""
    from bcq import report
    from bcq.importers.run import import_model

    result = import_model(
        arguments.source,
        arguments.output,
        kind=arguments.format,
        bits=arguments.bits,
        inexact=arguments.inexact,
        target=arguments.to,
        progress=progress(arguments),
        command=["bcq", *recorded(arguments.words, arguments.source)],
    )
    data = result.to_dict()
    summary = report.summarize(result.rows, result.model_bytes, result.seconds)
    emit(arguments, data, f"{_verdict(result)}\n{report.summary_text(summary, result.rows)}", result=False)
    return 0


def _verdict(result: ImportResult) -> str:
    """The line that says how well the weights were taken over."""
    count = len(result.matrices)
    if result.exact:
        return f"imported    {count} matrices from {result.kind}, every weight exact"
    worst = max(result.matrices, key=lambda matrix: matrix.worst)
    return (
        f"imported    {count} matrices from {result.kind}, rounded: a weight by up to {worst.worst:.2g} of a "
        f"quantization step ({worst.name}), relative error up to "
        f"{max(matrix.relative_error for matrix in result.matrices):.1e} (squared)"
    )
