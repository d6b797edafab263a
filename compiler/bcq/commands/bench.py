# SPDX-License-Identifier: Apache-2.0
"""``bcq bench``: BcqMatMul against onnxruntime's own matrix products, in one interleaved run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bcq.commands.options import add_verb, emit, progress
from bcq.errors import UsageError

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers

EXAMPLES = """\
  bcq bench
  bcq bench --shapes 4096x4096 --bits 3 --threads 2 --weights cold hot
  bcq bench --shapes 1024x1024 --tokens 1 32 --json"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb; options that are left out keep the defaults of `bcq.bench.run`."""
    verb = add_verb(subparsers, "bench", "time the kernels against onnxruntime's own", EXAMPLES)

    def add(flag: str, **settings: Any) -> None:
        verb.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add("--shapes", nargs="+", metavar="NxK", help="outputs x inputs, such as 4096x4096")
    add("--bits", nargs="+", type=int, metavar="Q", help="planes of BcqMatMul (default 2 3 4)")
    add("--group-size", type=int, metavar="G", help="inputs that share a scale (default 128)")
    add("--tokens", dest="m_values", nargs="+", type=int, metavar="M", help="rows of activations (default 1)")
    add("--threads", nargs="+", type=int, metavar="T", help="threads of onnxruntime (default 1 2)")
    add(
        "--weights",
        dest="cold",
        nargs="+",
        choices=("cold", "hot"),
        help="from memory or cached (default cold)",
    )
    add("--rounds", type=int, metavar="N", help="timed rounds; the median is shown")
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints the table."""
    chosen = settings(arguments)
    from bcq import bench

    result = bench.run(**chosen, progress=progress(arguments))
    emit(arguments, result.to_json(), bench.to_table(result))
    return 0


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user has written, as `bcq.bench.run` takes it.

    Raises:
        UsageError: E202 for a number below 1, or a shape that is not two of them.
    """
    names = ("shapes", "bits", "group_size", "m_values", "threads", "cold", "rounds")
    chosen = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    for name in ("bits", "m_values", "threads"):
        for number in chosen.get(name, ()):
            if number < 1:
                raise UsageError("E202", f"got {number}, expected numbers of at least 1.")
    if chosen.get("rounds", 1) < 1:
        raise UsageError("E202", f"--rounds: got {chosen['rounds']}, expected at least 1.")
    if "shapes" in chosen:
        chosen["shapes"] = [parse_shape(text) for text in chosen["shapes"]]
    if "cold" in chosen:
        chosen["cold"] = [state == "cold" for state in chosen["cold"]]
    return chosen


def parse_shape(text: str) -> tuple[int, int]:
    """Reads ``"4096x1024"`` as (N, K).

    Raises:
        UsageError: E202 when it is not two numbers of at least 1.
    """
    rows, separator, inputs = text.partition("x")
    if not (separator and rows.isdecimal() and inputs.isdecimal() and int(rows) and int(inputs)):
        raise UsageError("E202", f"--shapes {text!r}: expected two numbers such as 4096x1024.")
    return int(rows), int(inputs)
