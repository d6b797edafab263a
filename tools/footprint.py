# SPDX-License-Identifier: Apache-2.0
"""What a packed model costs a C or C++ program: sizes, load time, memory, first token, life in little memory.

Usage: python tools/footprint.py --programs build/cpp --work FOLDER --write docs/benchmarks/footprint.md

``--programs`` is a build of examples/cpp with onnxruntime; ``--work`` keeps the models that are made. This
process stays small, because a child's peak memory begins with what its parent had.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
MB = 1e6
TOKENS = 32
PROMPT = ("3", "4", "5", "6")
LOADS = 15
NATIVE = "native"  # the program without onnxruntime, where others name how `generate` holds its weights
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")  # version 1, version 2
MODELS = {
    "demo": "trained GPT-2 of 0.9 M parameters that ships in the repository",
    "gpt2-medium": "seeded GPT-2 of the medium shape: 24 layers, width 1024, 355 M parameters",
}
_MAKE_MEDIUM = """
import sys, torch, transformers
torch.manual_seed(0)
sizes = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(sys.argv[1])
"""


@dataclass(frozen=True)
class Ran:
    """One run of examples/cpp/generate or native.

    Attributes:
        tokens: what it printed.
        seconds: from its start to its end.
        peak: resident bytes at most, mapped pages of files included.
    """

    tokens: str
    seconds: float
    peak: int


@dataclass(frozen=True)
class Footprint:
    """One model with one way to hold its weights."""

    name: str
    weights: str
    file_bytes: int
    loaded: Ran
    first: Ran
    cold: Ran
    text: Ran

    def row(self) -> str:
        """One line of the table."""
        runs = (self.loaded, self.first, self.text)
        numbers = [f"{size / MB:.1f}" for size in (self.file_bytes, *(run.peak for run in runs))]
        numbers.append(f"{self.text.peak / self.file_bytes:.2f}")
        numbers += [f"{run.seconds:.2f}" for run in (self.loaded, self.first, self.cold)]
        return f"| {' | '.join([self.name, self.weights, *numbers])} |"


def prepare(work: Path) -> dict[str, Path]:
    """Exports of both models with 3 bits, made where they are missing."""
    work.mkdir(parents=True, exist_ok=True)
    sources = {"demo": ROOT / "compiler" / "bcq" / "demo_model", "gpt2-medium": work / "gpt2-medium"}
    for name, source in sources.items():
        out = work / f"{name}-q3"
        if out.is_dir():
            continue
        if not source.is_dir():
            subprocess.run([sys.executable, "-c", _MAKE_MEDIUM, str(source)], check=True)
        options = ["--bits", "3", "--group-size", "128", "--method", "greedy", "--quiet"]
        subprocess.run(
            [sys.executable, "-m", "bcq.cli", "export", str(source), "-o", str(out), *options], check=True
        )
    return {name: work / f"{name}-q3" for name in sources}


def model_files(folder: Path) -> list[Path]:
    """The graph and its data."""
    return sorted(folder.glob("model.onnx*"))


def forget(folder: Path) -> None:
    """Takes the model's files out of the page cache."""
    for path in model_files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def generate(programs: Path, folder: Path, count: int, weights: str, group: Path | None = None) -> Ran:
    """Runs an example; within the control group `group` if there is one."""
    command = [str(programs / "generate"), str(folder), str(count), *PROMPT]
    if weights == NATIVE:
        command = [str(programs / NATIVE), *command[1:], "--memory"]
    if group is not None:
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
    environment = {**os.environ, "BCQ_WEIGHTS": "auto" if weights == NATIVE else weights}
    began = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as notes:
        pid = os.posix_spawn(
            "/usr/bin/env",
            ["env", *command],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, notes.fileno(), 2),
            ],
        )
        _, status, usage = os.wait4(pid, 0)
        seconds = time.monotonic() - began
        tokens, told = (whole(file) for file in (output, notes))
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}: {told}")
    found = re.search(
        r"peak resident\s+(\d+) kB", told
    )  # its own count, which does not begin with its parent's
    return Ran(tokens, seconds, 1024 * (int(found[1]) if found else usage.ru_maxrss))


def whole(file: IO[bytes]) -> str:
    """What a program has written."""
    file.seek(0)
    return file.read().decode().strip()


def footprint(programs: Path, name: str, folder: Path, weights: str) -> Footprint:
    """All runs of one model."""
    warm = [generate(programs, folder, count, weights) for count in (0, 1, TOKENS)]
    forget(folder)
    cold = generate(programs, folder, 1, weights)
    total = sum(path.stat().st_size for path in model_files(folder))
    return Footprint(name, weights, total, warm[0], warm[1], cold, warm[2])


def limited(programs: Path, folder: Path, limit: int, weights: str) -> tuple[Ran, str] | None:
    """A text in a control group of `limit` bytes; None where none may be made."""
    for mount, file in zip(MEMORY_GROUPS, ("memory.limit_in_bytes", "memory.max"), strict=True):
        group = mount / f"bcq-footprint-{os.getpid()}"
        try:
            group.mkdir()
            (group / file).write_text(str(limit))
        except OSError:
            continue
        try:
            forget(folder)  # pages of others do not count here, so none may be left
            return generate(programs, folder, TOKENS, weights, group), f"{mount}/**/{file}"
        finally:
            group.rmdir()
    return None


def load_milliseconds(library: Path) -> float:
    """Median processor time of dlopen in fresh processes, which a busy machine changes little."""
    program = "import ctypes, sys, time; t = time.process_time(); ctypes.CDLL(sys.argv[1]); "
    command = [sys.executable, "-S", "-c", program + "print(time.process_time() - t)", str(library)]
    return 1e3 * statistics.median(float(subprocess.check_output(command)) for _ in range(LOADS))


def stripped_bytes(program: Path) -> int:
    """Size of a program or library without symbols."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "stripped"
        subprocess.run(["strip", "--strip-unneeded", "-o", str(copy), str(program)], check=True)
        return copy.stat().st_size


def needed(library: Path) -> str:
    """The libraries that it asks for."""
    listed = subprocess.check_output(["readelf", "-d", str(library)], text=True)
    return ", ".join(re.findall(r"NEEDED.*\[(.*)\]", listed))


def device_program(isa: str, folder: Path) -> int:
    """Bytes of the gemm example linked with the static library of one instruction set."""
    build = folder / f"isa-{isa}"
    if not (build / "libbcq_core.a").is_file():
        options = [f"-DBCQ_ISA_ONLY={isa}", "-G", "Ninja"]
        subprocess.run(
            ["cmake", "-S", str(ROOT / "runtime"), "-B", str(build), *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        subprocess.run(
            ["cmake", "--build", str(build), "--target", "bcq_core"], check=True, stdout=subprocess.DEVNULL
        )
    program = build / "gemm"
    source = [
        str(ROOT / "examples" / "cpp" / "gemm.c"),
        f"-I{ROOT / 'runtime' / 'capi'}",
        str(build / "libbcq_core.a"),
    ]
    subprocess.run(["cc", "-O2", *source, "-lm", "-Wl,--gc-sections", "-o", str(program)], check=True)
    subprocess.run([str(program)], check=True, stdout=subprocess.DEVNULL)
    return stripped_bytes(program)


def libraries_text(programs: Path, work: Path) -> str:
    """Sizes and load time."""
    library = next(programs.rglob("libbcq_ops.so"))
    sizes = [
        f"| a program for {isa} alone (`gemm`), stripped | {device_program(isa, work) / 1e3:.0f} KB |"
        for isa in ("avx2", "scalar")
    ]
    native = stripped_bytes(programs / NATIVE)
    sizes.append(
        f"| a decoder without onnxruntime (`native`), all x86-64 kernels, stripped | {native / 1e3:.0f} KB |"
    )
    return "\n".join(
        [
            "| part | |",
            "|---|---|",
            f"| `libbcq_ops.so`, all x86-64 kernels, stripped | {stripped_bytes(library) / 1e3:.0f} KB |",
            f"| it needs | {needed(library)} |",
            f"| dlopen, processor time, median of {LOADS} processes | {load_milliseconds(library):.1f} ms |",
            *sizes,
        ]
    )


def main() -> int:
    """Measures, prints and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit-share", type=float, default=0.6, help="memory limit, of the file's size")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    programs, folders = arguments.programs.resolve(), prepare(arguments.work)
    rows = [
        footprint(programs, name, folder, weights)
        for name, folder in folders.items()
        for weights in ("auto", "mapped", NATIVE)
    ]
    for name in folders:
        if len({row.text.tokens for row in rows if row.name == name}) != 1:
            raise RuntimeError(f"{name}: the programs do not print the same tokens")
    models = "\n".join(f"- {name}: {MODELS[name]}; {attention(folder)}" for name, folder in folders.items())
    limit = limit_text(programs, rows, folders, arguments)
    speed = "\n".join(speed_rows(name, folder) for name, folder in folders.items())
    text = page(libraries_text(programs, arguments.work), models, rows, speed, limit)
    print(text)
    if arguments.write is not None:
        arguments.write.write_text(text, encoding="utf-8")
    return 0


def limit_text(
    programs: Path, rows: list[Footprint], folders: dict[str, Path], arguments: argparse.Namespace
) -> str:
    """What became of the largest model under a memory limit."""
    told = []
    for row in rows[-2:]:
        limit = int(row.file_bytes * arguments.limit_share)
        found = limited(programs, folders[row.name], limit, row.weights)
        if found is None:
            return "Not measured: this machine allows no control group of memory."
        ran, file = found
        same = "the same" if ran.tokens == row.text.tokens else "OTHER"
        told.append(
            f"- {row.weights}: {same} {TOKENS} tokens in {ran.seconds:.1f} s, without the limit in "
            f"{row.text.seconds:.1f} s; resident {ran.peak / MB:.1f} MB at most"
        )
    head = (
        f"{row.name} in a control group of {limit / MB:.0f} MB (`{file}`), "
        f"{arguments.limit_share:.0%} of its file,\npage cache included:\n\n"
    )
    return head + "\n".join(told)


def speed_rows(name: str, folder: Path) -> str:
    """Times of the three ways in turns; in a process of its own, since this one stays small."""
    command = [sys.executable, str(ROOT / "tools" / "native_speed.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("BCQ_WEIGHTS", None)
    found = json.loads(subprocess.check_output(command, env=environment))
    return "\n".join(
        f"| {name} | {way} | {times['decile']:.2f} | {times['step']:.2f} | {times['prompt']:.0f} |"
        for way, times in found.items()
    )


def attention(folder: Path) -> str:
    """How the export computes attention."""
    fused = b"GroupQueryAttention" in (folder / "model.onnx").read_bytes()
    return "attention in one operator a layer" if fused else "attention in separate operators"


def page(libraries: str, models: str, rows: list[Footprint], speed: str, limit: str) -> str:
    """docs/benchmarks/footprint.md."""
    header = (
        "| model | weights | file MB | loaded MB | first token MB | "
        f"{TOKENS} tokens MB | of file | load s | first token s | cold s |"
    )
    return f"""# Footprint: what a packed model costs a C or C++ program

`make footprint ONNXRUNTIME_ROOT=...` writes this page: `examples/cpp/generate` and, without onnxruntime,
`examples/cpp/native` with 3 bits, groups of 128, on {cpu()}. On a busy machine times
are upper bounds.

## Libraries

{libraries}

## Models

{models}

Memory is the peak of resident pages of the whole process; mapped pages of files, onnxruntime and the C++
library count. Times run from the start of the process to its end: load alone, one token (a prompt of
{len(PROMPT)}), and one token with the model's files out of the page cache. `auto` is the default: a copy of
the codes in the order of the kernel, whose file pages are let go; `mapped` computes on the file;
`native` is the program without onnxruntime, on the file, too. All print the same tokens.

{header}
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|
{chr(10).join(row.row() for row in rows)}

## Time, one thread

The three take turns token by token in one process (`tools/native_speed.py`), after a prompt of 128
tokens: first decile and median of 64 steps, and the best of three prompts.

| model | weights | step ms, best tenth | median | prompt ms |
|---|---|--:|--:|--:|
{speed}

## Less memory than the model

{limit}
"""


def cpu() -> str:
    """The processor's name."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown CPU"


if __name__ == "__main__":
    sys.exit(main())
