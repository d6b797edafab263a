# SPDX-License-Identifier: Apache-2.0
"""The pieces of tools/gpu_check.py in the order of their worth, and the process that runs them.

A piece names what it needs; where that is missing its outcome is "not available" with the reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
LIBRARY = BUILD / "libbcq_ops_cuda.so"
Table = dict[str, Any]  # title, header and rows, as gpu_report.py writes them


@dataclass
class Outcome:
    """What became of a piece.

    Attributes:
        name: of the piece.
        status: ``ok``, ``FAILED``, ``not available`` or ``left out``.
        text: one line: figures or the reason.
        seconds: that it took.
        tables: for the page.
    """

    name: str
    status: str
    text: str
    seconds: float
    tables: list[Table] = field(default_factory=list)

    def line(self) -> str:
        """For the log and the page."""
        return f"{self.status:13} {self.name} ({self.seconds:.0f} s): {self.text}"


@dataclass(frozen=True)
class Setting:
    """Where pieces run.

    Attributes:
        device: of tensors: ``cuda``, or ``cpu`` in a rehearsal.
        deadline: seconds since the epoch at which benches stop.
    """

    device: str
    deadline: float

    @property
    def rehearsal(self) -> bool:
        """Whether this is the emulated library on the CPU."""
        return self.device == "cpu"

    def is_over(self) -> bool:
        """Whether the time is up, with some left for the page."""
        return time.time() > self.deadline - 5


Body = Callable[[Setting], "str | tuple[str, list[Table]]"]


@dataclass(frozen=True)
class Piece:
    """One piece: its limit in seconds, what it needs, what it does."""

    name: str
    seconds: float
    needs: tuple[str, ...]
    body: Body
    needed_by_all: bool = False


def missing(need: str, setting: Setting) -> str | None:
    """Why this machine cannot run pieces that need something, or None."""
    if need in ("torch", "onnxruntime", "onnx"):
        return None if importlib.util.find_spec(need) else f"Python has no {need}"
    if need == "device":
        return "a rehearsal on the CPU" if setting.rehearsal else device_missing()
    if need == "cuda-provider":
        import onnxruntime

        has = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return None if has else f"onnxruntime {onnxruntime.__version__} has no CUDA provider"
    if need == "library":
        return None if Path(os.environ.get("BCQ_CUDA_LIBRARY", "")).is_file() else "the library was not built"
    return None if shutil.which(need) else f"{need} is not installed"


def device_missing() -> str | None:
    """Why no GPU can be used."""
    if importlib.util.find_spec("torch"):
        import torch

        return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"
    return None if capability_of_driver() else "nvidia-smi names no device"


def capability_of_driver() -> str:
    """``90`` for compute capability 9.0, or nothing."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    first = done.stdout.splitlines()[:1] if done.returncode == 0 else []
    return first[0].strip().replace(".", "") if first else ""


def run_command(*command: str, seconds: float = 300) -> str:
    """Output of a program; its end is in the error when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    text = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} gave {done.returncode}: {text[-1500:]}")
    return text


def machine(setting: Setting) -> str:
    """What is here, for the page."""
    found = [f"Python {sys.version.split()[0]}"]
    for name in ("torch", "onnxruntime"):
        if importlib.util.find_spec(name):
            found.append(f"{name} {importlib.import_module(name).__version__}")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
        found.append(run_command(*query, seconds=30).strip().replace("\n", "; "))
    if shutil.which("nvcc"):
        found.append(run_command("nvcc", "--version", seconds=30).strip().splitlines()[-1])
    return "; ".join(found)


def build(setting: Setting) -> str:
    """The library for this device alone, and the sanitizers' program."""
    capability = capability_of_driver()
    if not capability:
        import torch

        capability = "".join(map(str, torch.cuda.get_device_capability()))
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [f"-DBCQ_CUDA_ARCHITECTURES={capability}-real", "-DBCQ_CUDA_PROGRAM=ON"]
    run_command("cmake", "-S", str(ROOT / "runtime" / "cuda"), "-B", str(BUILD), *ninja, *options)
    run_command("cmake", "--build", str(BUILD), "--parallel", str(os.cpu_count() or 1))
    os.environ["BCQ_CUDA_LIBRARY"] = str(LIBRARY)
    return f"sm_{capability}, {LIBRARY.stat().st_size / 1e6:.1f} MB"


def small_problems(kernels: tuple[str, ...]) -> Body:
    """Some kernels on small problems, without Python's help."""

    def body(setting: Setting) -> str:
        return run_command(str(BUILD / "small_problems"), *kernels, seconds=55).strip().splitlines()[-1]

    return body


def sanitize(tool: str, kernels: tuple[str, ...]) -> Body:
    """The small problems under one tool of compute-sanitizer."""

    def body(setting: Setting) -> str:
        program = shutil.which("compute-sanitizer") or "compute-sanitizer"
        command = [program, "--tool", tool, "--error-exitcode", "9", str(BUILD / "small_problems"), *kernels]
        lines = run_command(*command, seconds=55).splitlines()
        return " ".join(line.strip("= ") for line in lines if "problems" in line or "SUMMARY" in line)

    return body


def check(name: str, *arguments: Any) -> Body:
    """A check of gpu_checks.py by its name."""

    def body(setting: Setting) -> str:
        import gpu_checks
        from bcq.kernels.cuda import Cuda

        text: str = getattr(gpu_checks, name)(Cuda.load(), setting.device, *arguments)
        return text

    return body


def bench(name: str) -> Body:
    """A bench of gpu_bench.py by its name."""

    def body(setting: Setting) -> tuple[str, list[Table]]:
        import gpu_bench
        from bcq.kernels.cuda import Cuda

        answer: tuple[str, list[Table]] = getattr(gpu_bench, name)(Cuda.load(), setting)
        return answer

    return body


def providers(setting: Setting) -> str:
    """Nodes on onnxruntime's CUDA provider against the CPU."""
    from gpu_ort import compare_providers

    return compare_providers(BUILD)


def peers(setting: Setting) -> tuple[str, list[Table]]:
    """The packed product of onnxruntime itself on the CUDA provider."""
    from gpu_peers import measure

    return measure(setting)


ON_DEVICE = ("torch", "device", "library")
CHECKED = ("torch", "library")
SANITIZED = ("device", "library", "compute-sanitizer")
BEST, WIDE = ("digits", "tiles8", "tiles16", "tiles32", "tiles64", "generic"), ("wide128",)
PIECES = [
    Piece("machine", 60, (), machine),
    Piece("build", 240, ("device", "nvcc", "cmake"), build, needed_by_all=True),
    Piece("small problems", 60, ("device", "library"), small_problems(BEST)),
    Piece("ragged sizes", 60, CHECKED, check("ragged", BEST)),
    Piece("selection, further planes, strides, M = 0", 30, CHECKED, check("selected")),
    Piece("gather", 30, CHECKED, check("gather")),
    Piece("times of one row", 60, CHECKED, bench("one_row")),
    Piece("wide kernel, small problems", 60, ("device", "library"), small_problems(WIDE)),
    Piece("wide kernel, ragged sizes", 60, CHECKED, check("ragged", WIDE)),
    Piece("non-default stream", 30, ON_DEVICE, check("on_a_side_stream")),
    Piece("CUDA graph", 30, ON_DEVICE, check("replay")),
    Piece("same bits", 30, CHECKED, check("same_bits")),
    Piece("times by rows", 60, CHECKED, bench("by_rows")),
    Piece("times of every kernel", 60, CHECKED, bench("crossovers")),
    Piece("large matrices", 60, ON_DEVICE, check("large", BEST)),
    Piece("wide kernel, large matrices", 30, ON_DEVICE, check("large", WIDE)),
    Piece("memcheck", 60, SANITIZED, sanitize("memcheck", BEST)),
    Piece("times of other matrices", 60, CHECKED, bench("others")),
    Piece("racecheck", 60, SANITIZED, sanitize("racecheck", BEST)),
    Piece("wide kernel, memcheck", 60, SANITIZED, sanitize("memcheck", WIDE)),
    Piece("wide kernel, racecheck", 60, SANITIZED, sanitize("racecheck", WIDE)),
    Piece("onnxruntime's product", 60, ("device", "torch", "onnx", "onnxruntime", "cuda-provider"), peers),
    Piece(
        "onnxruntime's providers",
        90,
        ("device", "library", "onnx", "onnxruntime", "cuda-provider"),
        providers,
    ),
]


def run_piece(piece: Piece, setting: Setting) -> Outcome:
    """One piece; nothing that it raises gets out."""
    start = time.monotonic()
    tables: list[Table] = []
    try:
        lacking = next((reason for need in piece.needs if (reason := missing(need, setting))), None)
        answer = "" if lacking else piece.body(setting)
        text, tables = answer if isinstance(answer, tuple) else (answer, [])
        status = "not available" if lacking else "ok"
        text = lacking or text
    except Exception as error:
        traceback.print_exc()
        text, status = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}", "FAILED"
    return Outcome(piece.name, status, text, time.monotonic() - start, tables)


def main() -> None:
    """Runs the pieces whose names come in, a line each; answers with a line of JSON each."""
    deadline = float(sys.argv[1])
    rehearse = sys.argv[2] if len(sys.argv) > 2 else None
    if rehearse or LIBRARY.is_file():
        os.environ["BCQ_CUDA_LIBRARY"] = rehearse or str(LIBRARY)
    setting = Setting("cpu" if rehearse else "cuda", deadline)
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not an answer
    known = {piece.name: piece for piece in PIECES}
    for line in sys.stdin:
        print(json.dumps(asdict(run_piece(known[line.strip()], setting))), file=answers, flush=True)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "compiler"), str(ROOT / "tools")]
    main()
