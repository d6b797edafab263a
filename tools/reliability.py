# SPDX-License-Identifier: Apache-2.0
"""The reliability bar: runs what measures each row and writes the table of docs/benchmarks/reliability.md.

``python tools/reliability.py [--only R3,R7] [--write FILE]`` takes an hour on two cores. A row holds
when its commands end with 0. Only the measured rows between the two marks of the page are replaced.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "reliability.md"
BEGIN, END = "<!-- begin: make reliability -->", "<!-- end: make reliability -->"
LAST_LINE = r"(.+)\s*\Z"
PASSED = r"((?:\d+ failed, )?\d+ passed(?:, \d+ skipped)?)[^\n]*\Z"


@dataclass(frozen=True)
class Check:
    """A command, the pattern of its output whose first group is a figure, and how many of these count."""

    command: tuple[str, ...]
    figure: str = LAST_LINE
    kept: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the bar: what is promised, what the best peer does, and how ours is measured."""

    name: str
    promise: str
    peer: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Result:
    """What the checks of a row printed, and whether all of them held."""

    row: Row
    figures: tuple[str, ...]
    holds: bool
    seconds: float


def tests(*arguments: str) -> Check:
    """Tests by file and by a part of their names."""
    return Check((sys.executable, "-m", "pytest", "-q", "-n", "0", "--no-header", *arguments), PASSED)


def module(*arguments: str, figure: str = LAST_LINE, kept: int = 1) -> Check:
    """A module of tests/."""
    return Check((sys.executable, "-m", *arguments), figure, kept)


def word(target: str, figure: str = LAST_LINE, kept: int = 1) -> Check:
    """A word of the Makefile."""
    return Check(("make", "--no-print-directory", target), figure, kept)


KERNELS = "tests/test_runtime_kernels.py"
ROWS = (
    Row(
        "R1",
        "malformed models: crash, hang, accepted, opaque: none",
        "0 / 0 / 3 / 18 of 168 (MatMulNBits, 2026-11-21)",
        (module("hostile.scoreboard", figure=r"\| (bcq\.session .*) \|"),),
    ),
    Row(
        "R2",
        "the same under AddressSanitizer and UBSan, and with buffers that end at a guard page",
        "no finding",
        (word("asan"),),  # has both
    ),
    Row(
        "R3",
        "1,000 flips and truncations: no crash, each one found by `bcq verify --integrity`",
        "flips in weights go unseen",
        (module("hostile.flips", "1000"),),
    ),
    Row(
        "R4",
        "NaN and Inf in activations and scaling factors reach what they must, and nothing else",
        "int8 loses 16 of 16",
        (tests(KERNELS, "tests/test_kernels_avx512.py", "-k", "poisoned or tables_do_not_hold"),),
    ),
    Row(
        "R5",
        "attacks by external data, in readers and writers; a Hugging Face cache loads",
        "25 of 26 (onnxruntime), 24 of 26 (onnx)",
        (tests("tests/test_hostile_external.py"),),
    ),
    Row(
        "R6",
        "bad checkpoints are refused, the tensor named, nothing of them runs",
        "a NaN exits with 0 (onnxruntime-genai)",
        (tests("tests/test_hostile_checkpoints.py"),),
    ),
    Row(
        "R7",
        "killed or out of disk at any write: the old output or the new one; --resume gives the same bytes",
        "19 of 21 points (onnx_ir), 9 of 29 (onnx)",
        (word("kill"),),
    ),
    Row(
        "R8",
        "the same export again, with other threads, another hash seed, another place: the same bytes",
        "-",
        (
            tests(
                "tests/test_determinism.py",
                "tests/test_chain.py::test_exporting_again_over_the_output_gives_the_same_bytes",
                "tests/test_manifest.py::test_writing_it_again_gives_the_same_bytes",
            ),
        ),
    ),
    Row(
        "R9",
        "faults of library, ABI, environment and format: no crash, none silent",
        "3 crash, 5 silent of 28",
        (tests("tests/test_hostile_faults.py"),),
    ),
    Row(
        "R10",
        "equal bits for any number of threads and parts, and for a row alone or in a batch",
        "float32 differs by 2.4e-4",
        (
            tests(
                KERNELS,
                "tests/test_runtime_ort.py",
                "tests/test_kernels_avx512.py",
                "-k",
                "same_bits or change_a_bit or one_panel",
            ),
        ),
    ),
    Row(
        "R11",
        "look-up kernels have the bits of one model on every instruction set, float32 ones agree within "
        "1e-6; a planted fault proves each one live",
        "int8 0.6 % apart",
        (
            tests(
                "tests/test_kernels_avx2.py",
                "tests/test_kernels_avx512.py",
                "tests/test_kernels_exact.py",
                "tests/test_emulated_cpus.py",
                "tests/test_planted_faults.py",
            ),
        ),
    ),
    Row(
        "R12",
        "16 threads on one session, 8 sessions on one file, 100,000 products each; ThreadSanitizer",
        "0 bad of 108,069",
        (module("stress", "--cycles", "0", figure=r"(\d+ products.*wrong)", kept=2), word("tsan")),
    ),
    Row(
        "R13",
        "peak memory of quantize and export of a model over 2 GB: three times its largest tensor + 200 MB",
        "2.4 to 2.6 times the checkpoint (onnxruntime-genai)",
        (word("memory"),),
    ),
    Row(
        "R14",
        "fuzzers for nodes, kernels, the reader of exports in C and all readers in Python: no finding",
        "-",
        (word("fuzz", r"Done (\d+ runs in \d+ second)", 4),),
    ),
    Row(
        "R15",
        "10,000 sessions opened, run and closed: under 1 MB of growth, no descriptor left",
        "-",
        (module("stress", "--runs", "0", figure=r"(\d+ sessions.*)"),),
    ),
    Row(
        "R16",
        "line coverage of validation and dispatch: 95 %",
        "-",
        (word("coverage", r"([\d.]+ *%) +at least"),),
    ),
)


def main() -> int:
    """Measures the rows; 0 when all hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="rows, for example R3,R7 (default: all)")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help=f"the page, usually {PAGE.relative_to(ROOT)}"
    )
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [row.name for row in ROWS]
    unknown = set(chosen) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}: no such row; there are R1 to R{len(ROWS)}")
    results = []
    for row in (row for row in ROWS if row.name in chosen):
        results.append(measured(row))
        if options.write:
            write(options.write, results)
    print(page(results, {}))
    return 0 if all(result.holds for result in results) else 1


def measured(row: Row) -> Result:
    """Runs a row's checks one after the other."""
    begin = time.monotonic()
    figures, holds = [], True
    for check in row.checks:
        done = subprocess.run(
            check.command,
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        found = re.findall(check.figure, done.stdout.strip())
        figures.append("; ".join(each.strip() for each in found[-check.kept :]) or "no figure")
        if done.returncode:
            holds = False
            print(f"{row.name}: {' '.join(check.command)}\n{done.stdout[-4000:]}", file=sys.stderr)
    print(f"{row.name}: {'; '.join(figures)}", file=sys.stderr, flush=True)
    return Result(row, tuple(figures), holds, time.monotonic() - begin)


def environment() -> dict[str, str]:
    """That of this process, with tests/ importable and one thread for libraries."""
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def page(results: Sequence[Result], kept: dict[str, str]) -> str:
    """The table, with the machine it was made on; rows that were not measured now stay as they are."""
    lines = {result.row.name: line(result) for result in results}
    return "\n".join(
        [
            f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
            f"onnxruntime {version('onnxruntime')}.",
            "",
            "| | promise | best peer | ours | holds | s |",
            "|---|---|---|---|---|---:|",
            *(lines.get(row.name) or kept[row.name] for row in ROWS if row.name in lines or row.name in kept),
        ]
    )


def line(result: Result) -> str:
    """A row of the table."""
    figures = "; ".join(figure.replace("|", "/") for figure in result.figures)
    return (
        f"| {result.row.name} | {result.row.promise} | {result.row.peer} | {figures} "
        f"| {'yes' if result.holds else '**no**'} | {result.seconds:.0f} |"
    )


def write(file: Path, results: Sequence[Result]) -> None:
    """Puts the rows between the marks of the page."""
    before, _, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    kept = {found[1]: found[0] for found in re.finditer(r"^\| (R\d+) \|.*$", table, re.MULTILINE)}
    file.write_text(f"{before}{BEGIN}\n{page(results, kept)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
