# SPDX-License-Identifier: Apache-2.0
"""Line coverage of the library's validation and dispatch: builds with gcc's counters, runs tests, prints.

``make coverage`` fails below 95 %. Kernels are not counted: whole suites compare each with the oracle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = Path(os.environ.get("BCQ_COVERAGE_BUILD", ROOT / "build" / "coverage"))
LEAST = 95.0
COUNTED = ("runtime/core/", "runtime/ort/")
LEFT_OUT = ("runtime/core/read_bytes.cc",)  # a bench
TESTS = (
    "test_core.py",
    "test_selection.py",
    "test_runtime.py",
    "test_runtime_*.py",
    "test_kernels_gather.py",
)
# Counters are written at the end of a process, and two threads may count at once.
FLAGS = "--coverage -fprofile-update=atomic -O1 -g"
Lines = dict[int, int]


def build() -> Path:
    """The instrumented library."""
    configure = ["cmake", "-S", str(ROOT / "tests" / "native"), "-B", str(BUILD), "-G", "Ninja"]
    options = ["-DCMAKE_BUILD_TYPE=None", f"-DCMAKE_CXX_FLAGS={FLAGS}", "-DCMAKE_CXX_COMPILER=g++"]
    subprocess.run([*configure, *options], check=True)
    subprocess.run(["cmake", "--build", BUILD], check=True)
    return BUILD / "runtime" / "libbcq_ops.so"


def run_tests(library: Path) -> None:
    """Everything that must pass through validation and dispatch."""
    for counters in BUILD.rglob("*.gcda"):
        counters.unlink()
    tests = [str(path) for name in TESTS for path in sorted((ROOT / "tests").glob(name))]
    environment = {**os.environ, "BCQ_LIBRARY": str(library), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", *tests], env=environment, cwd=ROOT, check=True
    )
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([BUILD / "planned_failures", folder], check=True, stdout=subprocess.DEVNULL)


def counts() -> dict[str, Lines]:
    """Runs of every line, by source file below the root."""
    found: dict[str, Lines] = defaultdict(lambda: defaultdict(int))
    for notes in sorted((BUILD / "runtime").rglob("*.gcno")):
        command = ["gcov", "--json-format", "--stdout", str(notes)]
        for text in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            report: dict[str, Any] = json.loads(text)
            for file in report["files"]:
                path = _below_root(Path(report["current_working_directory"], file["file"]))
                for line in file["lines"]:
                    found[path][line["line_number"]] += line["count"]
    return {path: found[path] for path in found if path.startswith(COUNTED) and path not in LEFT_OUT}


def _below_root(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def table(found: dict[str, Lines]) -> tuple[str, float]:
    """The table, with the lines that never ran, and the share of all lines that ran."""
    rows = [f"{'file':32} {'lines':>6} {'run':>6} {'share':>7}  not run"]
    total = ran = 0
    for path, lines in sorted(found.items()):
        missed = [number for number, count in sorted(lines.items()) if count == 0]
        total += len(lines)
        ran += len(lines) - len(missed)
        share = 100 * (1 - len(missed) / len(lines))
        rows.append(f"{path:32} {len(lines):6} {len(lines) - len(missed):6} {share:6.1f}%  {_short(missed)}")
    share = 100 * ran / total
    rows.append(f"{'all':32} {total:6} {ran:6} {share:6.1f}%  at least {LEAST} %")
    return "\n".join(rows), share


def _short(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (" ..." if len(numbers) > 12 else "")


def main() -> int:
    """Builds, runs, prints; 1 when too little was run."""
    run_tests(build())
    text, share = table(counts())
    print(text)
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
