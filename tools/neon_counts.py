# SPDX-License-Identifier: Apache-2.0
"""What the NEON kernels cost: instructions counted under an emulator, cycles modelled by llvm-mca.

    python tools/neon_counts.py [--write docs/benchmarks/neon.md]

Needs Debian's g++-aarch64-linux-gnu, qemu-user, cmake and llvm (19 or later: models of Arm's own cores).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bcq.packing import pack
from nodes import activations, random_weight
from other_cpu import COMPILER, OtherCpu, Problem, build

RUNTIME = Path(__file__).parents[1] / "runtime"
SYSTEM = "/usr/aarch64-linux-gnu"
EMULATOR = "qemu-aarch64"
INPUTS = 2048
GROUP = 128
TILE = 16
LINE = 512  # weights of one plane: a line of 64 bytes
CORES = ("neoverse-n1", "neoverse-v1", "cortex-a55")
RESIDENT = ", resident"  # a copy of the codes in the kernel's order
KERNELS = {"neon_t16": 0, "neon_t8": 4, "neon_exact": 1, "scalar": 0}  # and an accuracy level of each
BRANCH = re.compile(r"(?:b\.?\w*|cbn?z|tbn?z)\s+(?:\w+,\s*)?(?:#?\d+,\s*)?(\.L\w+)$")


@dataclass(frozen=True)
class Loop:
    """An innermost loop of the look-ups: which function it is in, and its instructions."""

    function: str
    code: tuple[str, ...]

    @property
    def vectors(self) -> int:
        """Instructions that compute on vectors: no loads, stores or addresses."""
        moved = ("ld", "st", "prf")
        return sum(bool(re.search(r"\bv\d+\.", line)) and not line.startswith(moved) for line in self.code)


def executed(cpu: OtherCpu, folder: Path, kernel: str, bits: int, tokens: int, tiles: int) -> int:
    """Instructions that the program executes to compute some tiles, with all that is around."""
    weight = pack(random_weight(tiles * TILE, INPUTS, bits, GROUP))
    name = kernel.removesuffix(RESIDENT)
    a, resident = activations(tokens, INPUTS), kernel.endswith(RESIDENT)
    problem = Problem(name, weight, a, KERNELS[name], parts=1, resident=resident)
    (folder / "problem").write_bytes(problem.bytes())
    command = [
        EMULATOR,
        "-cpu",
        "max",
        "-L",
        SYSTEM,
        "-singlestep",
        "-d",
        "nochain,exec",
        "-D",
        "/dev/stderr",
    ]
    command += [str(cpu.folder / "run_problems"), str(folder / "problem"), str(folder / "result")]
    told = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert told.stderr is not None
    count = sum(block.count(b"Trace ") for block in _lines(told.stderr.fileno()))
    assert told.wait() == 0, f"{kernel}: the emulated program failed"
    return count


def _lines(descriptor: int) -> list[bytes]:
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        return list(stream)


def per_line(cpu: OtherCpu, folder: Path, kernel: str, bits: int, tokens: int) -> float:
    """Instructions for 512 weights of a plane and a row of A, all of a tile's work included."""
    counts = [executed(cpu, folder, kernel, bits, tokens, tiles) for tiles in (1, 2)]
    if kernel.endswith(RESIDENT):  # the copy is made before, also for no rows of A
        counts = [n - executed(cpu, folder, kernel, bits, 0, i + 1) for i, n in enumerate(counts)]
    return (counts[1] - counts[0]) / (TILE * INPUTS * bits * tokens / LINE)


@cache
def loops() -> tuple[Loop, ...]:
    """The innermost loops of the look-ups, as the cross compiler translates them."""
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", "-DBCQ_ARCH_ARM64=1", "-fPIC"]
    source = RUNTIME / "kernels" / "bcq_matmul" / "neon.cc"
    text = subprocess.run(
        [COMPILER, *flags, f"-I{RUNTIME}", str(source), "-S", "-o", "-"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    named = subprocess.run(["c++filt"], input=text, check=True, capture_output=True, text=True).stdout
    found, function, code, labels = [], "", [], {}  # type: ignore[var-annotated]
    for line in named.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif head := re.match(r"(.*add_tiles<.*|\w.*):$", line):
            function, code, labels = head[1], [], {}
        elif re.match(r"\t[a-z]", line):
            code.append(line.strip().replace("\t", " "))
            jump = BRANCH.match(code[-1])
            if jump and jump[1] in labels:
                body = tuple(code[labels[jump[1]] :])
                inner = not any(
                    i < len(body) - 1 and _is_back(body, i, labels, code) for i in range(len(body))
                )
                if inner and any(text.startswith("tbl") for text in body):
                    found.append(Loop(function, body))
    return tuple(found)


def _is_back(body: tuple[str, ...], at: int, labels: dict[str, int], code: list[str]) -> bool:
    """Whether an instruction of a body jumps back within it."""
    jump, start = BRANCH.match(body[at]), len(code) - len(body)
    return bool(jump) and start <= labels.get(jump[1], -1) <= start + at  # type: ignore[index]


def loop_of(method: str, rows: int, bits: int) -> Loop:
    """The loop of one row of A and all planes, or of some rows and any number of planes."""
    template = method.replace(RESIDENT, ">")  # Resident<T16>
    wanted = f"{template}, {rows}, {bits if rows == 1 else 0}>"
    (loop,) = (loop for loop in loops() if wanted in loop.function)
    return loop


def cycles(loop: Loop, core: str) -> float:
    """Cycles of one iteration, as llvm-mca models the core."""
    text = "\n".join(line for line in loop.code if not BRANCH.match(line)) + "\n"
    tool = shutil.which("llvm-mca-19") or "llvm-mca"
    command = [tool, "-mtriple=aarch64", f"-mcpu={core}", "-iterations=200", "-"]
    told = subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", told)
    assert found is not None, told
    return int(found[1]) / 200


def counted(cpu: OtherCpu, folder: Path) -> list[str]:
    """The table of executed instructions."""
    rows = ["| kernel | M | q | instructions a line | a weight and plane |", "|---|---|---|---|---|"]
    looking_up = ("neon_t16", "neon_t16" + RESIDENT, "neon_t8", "neon_t8" + RESIDENT)
    one = [(kernel, 1, bits) for kernel in looking_up for bits in (2, 3, 4)]
    for kernel, tokens, bits in (
        *one,
        ("neon_t16", 4, 3),
        ("neon_t8", 8, 3),
        ("neon_exact", 1, 3),
        ("scalar", 1, 3),
    ):
        value = per_line(cpu, folder, kernel, bits, tokens)
        rows.append(f"| {kernel} | {tokens} | {bits} | {value:.1f} | {value / LINE:.3f} |")
    return rows


def modelled() -> list[str]:
    """The table of modelled cycles."""
    rows = [f"| look-ups | instructions | on vectors | {' | '.join(CORES)} |", "|---|---|---|---|---|---|"]
    looking_up = ("T16", "T16" + RESIDENT, "T8", "T8" + RESIDENT)
    cases = [(m, 1, q) for m in looking_up for q in (2, 3, 4)] + [("T16", 4, 1), ("T8", 8, 1)]
    for method, tokens, bits in cases:
        loop = loop_of(method, tokens, bits)
        lines = tokens * bits
        figures = [len(loop.code) / lines, loop.vectors / lines, *(cycles(loop, c) / lines for c in CORES)]
        what = f"{method}, M = {tokens}" + (f", q = {bits}" if tokens == 1 else "")
        rows.append(f"| {what} | {' | '.join(f'{f:.1f}' for f in figures)} |")
    return rows


def report() -> dict[str, str]:
    """Both tables."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        cpu = OtherCpu(folder, EMULATOR)
        return {"counted": "\n".join(counted(cpu, folder)), "modelled": "\n".join(modelled())}


def main() -> None:
    """Prints the tables, or puts them into a page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, help="a page with <!-- counted --> and <!-- modelled --> marks")
    page = parser.parse_args().write
    tables = report()
    if page is None:
        print("\n\n".join(tables.values()))
        return
    text = page.read_text(encoding="utf-8")
    for mark, table in tables.items():
        between = re.compile(rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, count = between.subn(lambda found, new=table: found[1] + new + found[2], text)  # type: ignore[misc]
        assert count == 1, f"{page} has no mark for {mark}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
