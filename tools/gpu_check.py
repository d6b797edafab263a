# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a GPU in one call: build, checks, sanitizers, benchmark table.

Needs nvcc, cmake and PyTorch.

    make gpu-check
    python3 tools/gpu_check.py --seconds 420 --output docs/benchmarks

Steps that fail do not stop the others; the exit status is the number of them. When the time is short, the
benchmark leaves rows out and says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "compiler"))
BUILD = ROOT / "build" / "gpu"
SANITIZER_SECONDS = 60


class Steps:
    """Runs steps, prints what became of each, keeps the lines for the report."""

    def __init__(self, seconds: float) -> None:
        self.started = time.monotonic()
        self.end = self.started + seconds
        self.lines: list[str] = []
        self.failures = 0

    def run(self, name: str, body: Callable[[], str]) -> bool:
        """One step; False when it failed."""
        start = time.monotonic()
        try:
            text, word = body(), "ok"
        except Exception as error:
            traceback.print_exc()
            text, word = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}", "FAILED"
            self.failures += 1
        self.lines.append(f"{word:6} {name} ({time.monotonic() - start:.0f} s): {text}")
        print(self.lines[-1], flush=True)
        return word == "ok"

    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.end


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=420, help="when the benchmark ends at the latest")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "benchmarks", help="folder of the table"
    )
    parser.add_argument("--no-bench", action="store_true", help="checks only")
    return parser.parse_args()


def run_command(*command: str, seconds: float = 300) -> str:
    """Output of a program; its end is in the error when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    text = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} gave {done.returncode}: {text[-1500:]}")
    return text


def build() -> str:
    """The library for this device alone, and the sanitizers' program."""
    import torch

    capability = "".join(map(str, torch.cuda.get_device_capability()))
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [f"-DBCQ_CUDA_ARCHITECTURES={capability}-real", "-DBCQ_CUDA_PROGRAM=ON"]
    run_command("cmake", "-S", str(ROOT / "runtime" / "cuda"), "-B", str(BUILD), *ninja, *options)
    run_command("cmake", "--build", str(BUILD), "--parallel", str(os.cpu_count() or 1))
    os.environ["BCQ_CUDA_LIBRARY"] = str(BUILD / "libbcq_ops_cuda.so")
    return f"sm_{capability}, {(BUILD / 'libbcq_ops_cuda.so').stat().st_size / 1e6:.1f} MB"


def sanitize(tool: str) -> str:
    """The small problems under one tool of compute-sanitizer."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return "skipped: compute-sanitizer is not installed"
    text = run_command(
        program,
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        str(BUILD / "small_problems"),
        seconds=SANITIZER_SECONDS,
    )
    return " ".join(line.strip("= ") for line in text.splitlines() if "problems" in line or "SUMMARY" in line)


def onnxruntime_part() -> str:
    """A node on onnxruntime's CUDA provider against the same node on the CPU."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "skipped: onnxruntime is not installed"
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return f"skipped: onnxruntime {onnxruntime.__version__} has no CUDA provider"
    from gpu_ort import compare_providers

    return compare_providers(BUILD)


def bench(steps: Steps, output: Path) -> str:
    """The tables, into a file named after the device."""
    import torch

    from bcq.cuda import Cuda
    from gpu_bench import MATRICES, copy_bandwidth, crossovers, rows_of, table

    cuda, name = Cuda.load(), torch.cuda.get_device_name()
    bandwidth = copy_bandwidth()
    rows = [row for N, K in MATRICES for row in rows_of(cuda, N, K, bandwidth, steps.is_over)]
    crossing = crossovers(cuda, *MATRICES[0], 3, steps.is_over)
    header = (
        "N x K",
        "M",
        "q",
        "kernel",
        "us, median (range)",
        "GB/s",
        "of copy",
        "cuBLAS fp16, us",
        "faster",
    )
    text = "\n".join(
        [
            f"# CUDA kernels on {name}",
            "",
            "Made by `make gpu-check`. float16 activations, g = 128; each launch reads weights that are in",
            "no cache; times are medians of 15 replays of a captured chain of launches, gaps included.",
            "GB/s: bytes of codes, alphas, activations and results over that time.",
            f"Device-to-device copy in the same run: {bandwidth:.0f} GB/s.",
            "",
            table(header, rows),
            "",
            "Every kernel at every number of rows, 17408x5120, q = 3, us:",
            "",
            table(("M", "digits", "tiles8", "tiles16", "tiles32", "tiles64"), crossing),
            "",
            *(["The time was up before all rows were measured.", ""] if steps.is_over() else []),
            "Checks:",
            "",
            "```",
            *steps.lines,
            "```",
            "",
        ]
    )
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"cuda-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.md"
    file.write_text(text, encoding="utf-8")
    print(text)
    return f"{len(rows)} rows in {file}; copy {bandwidth:.0f} GB/s"


def main() -> int:
    """Runs all steps."""
    arguments = parse()
    steps = Steps(arguments.seconds)
    if not steps.run("build", build):
        return steps.failures
    from bcq.cuda import Cuda
    from gpu_checks import all_checks

    cuda = Cuda.load()
    missing = cuda.unavailable()
    if missing is not None:
        print(f"no usable device: {missing}")
        return 1
    print(cuda.device(), flush=True)
    for name, check in all_checks(cuda):
        steps.run(name, check)
    for tool in ("memcheck", "racecheck"):
        steps.run(tool, lambda tool=tool: sanitize(tool))  # type: ignore[misc]
    steps.run("onnxruntime", onnxruntime_part)
    if not arguments.no_bench:
        steps.run("benchmark", lambda: bench(steps, arguments.output))
    print("\n".join(steps.lines))
    return steps.failures


if __name__ == "__main__":
    sys.exit(main())
