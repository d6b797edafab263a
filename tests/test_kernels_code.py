# SPDX-License-Identifier: Apache-2.0
"""The machine code of the look-up loops: no vector goes through the stack, whoever compiles."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from native_builds import AVX2, AVX512, KERNELS, compile_object, compiler

VECTOR_TO_STACK = re.compile(r"%[yz]mm\d+,-?(0x[0-9a-f]+)?\(%r[sb]p[^)]*\)$")
INSTRUCTION = re.compile(r"\s+([0-9a-f]+):\t(.*)")
JUMP = re.compile(r"j\w+\s+([0-9a-f]+)")

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 kernels")


def innermost_loops(assembly: str) -> list[list[str]]:
    """Instructions of every loop that has no other loop inside."""
    found = [match.groups() for line in assembly.splitlines() if (match := INSTRUCTION.match(line))]
    code = [(int(address, 16), text.split("#")[0].strip()) for address, text in found]
    index = {address: i for i, (address, _) in enumerate(code)}
    loops = []
    for i, (address, text) in enumerate(code):
        jump = JUMP.match(text)
        target = int(jump[1], 16) if jump else address + 1
        if target <= address and target in index:
            loops.append((index[target], i))
    inner = [a for a in loops if not any(b != a and b[0] >= a[0] and b[1] <= a[1] for b in loops)]
    return [[text for _, text in code[begin : end + 1]] for begin, end in inner]


def loops_with(
    source: str, flags: tuple[str, ...], with_compiler: str, folder: Path, *words: str
) -> list[list[str]]:
    """Innermost loops of a kernel's file that have all of the given mnemonics."""
    built = compile_object(KERNELS / source, folder / "kernel.o", flags, with_compiler)
    command = [compiler("objdump"), "-d", "--no-show-raw-insn", str(built)]
    assembly = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loops = innermost_loops(assembly)
    return [loop for loop in loops if all(any(word in text for text in loop) for word in words)]


@pytest.mark.parametrize("with_compiler", ["g++", "clang++"])
def test_the_avx2_look_up_loops_keep_their_vectors_in_registers(with_compiler: str, tmp_path: Path) -> None:
    # With several rows of A, indexes are on the stack by design; loops that read codes are those for one row.
    loops = loops_with("avx2.cc", AVX2, with_compiler, tmp_path, "vpavgb", "vbroadcasti128")
    counts = {sum("vbroadcasti128" in text for text in loop) for loop in loops}
    assert counts == {4, 8, 12, 16, 24, 32}  # 1 to 4 chunks of one tile or of two
    assert [text for loop in loops for text in loop if VECTOR_TO_STACK.search(text)] == []


@pytest.mark.parametrize("with_compiler", ["g++", "clang++"])
def test_the_avx512_look_up_loops_keep_their_vectors_in_registers(with_compiler: str, tmp_path: Path) -> None:
    loops = loops_with("avx512.cc", AVX512, with_compiler, tmp_path, "vpdpbusd")
    assert loops
    assert [text for loop in loops for text in loop if VECTOR_TO_STACK.search(text)] == []


def test_the_check_sees_a_vector_that_goes_through_the_stack() -> None:
    assembly = "\n".join(
        ["  10:\tvpavgb %ymm0,%ymm1,%ymm2", "  14:\tvmovdqa %ymm2,0x20(%rsp)", "  18:\tjne    10 <f+0x10>"]
    )
    (loop,) = innermost_loops(assembly)
    assert [text for text in loop if VECTOR_TO_STACK.search(text)] == ["vmovdqa %ymm2,0x20(%rsp)"]
