# SPDX-License-Identifier: Apache-2.0
"""The machine code of the kernels' inner loops: no vector goes through the stack, whoever compiles."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from machine_code import Loop, disassemble, loops, parse
from native_builds import AVX2, RUNTIME, compile_object, compiler, isa_flags

SOURCES = {
    f"{path.parent.name}/{path.name}": path
    for path in (RUNTIME / "kernels").glob("*/*.cc")
    if isa_flags(path)
}
COMPILERS = pytest.mark.parametrize("with_compiler", ["g++", "clang++"])

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 kernels")


@dataclass(frozen=True)
class Rule:
    """Which innermost loops of a file do its work, and which of these may read vectors from the stack."""

    instruction: str
    without: tuple[str, ...] = ()
    may_read: Callable[[Loop], bool] = lambda loop: False


def always(loop: Loop) -> bool:
    """Two factors for each of up to eight planes, loaded before the loop, cannot all stay in registers."""
    return True


DECODING = ("vpand", "vpsll")  # once for all rows of A; its factors are read from where they lie
RULES = {
    "bcq_matmul/avx2.cc": Rule("vpavgb"),
    "bcq_matmul/avx512.cc": Rule("vpermb"),
    "bcq_matmul/avx2_exact.cc": Rule("vfmadd", without=DECODING),
    "bcq_matmul/avx512_exact.cc": Rule("vfmadd", without=DECODING),
    "bcq_gather/avx2.cc": Rule("vaddps", may_read=always),
}


@cache
def inner_loops(file: str, with_compiler: str) -> list[Loop]:
    """The innermost loops of a kernel's file that do its work."""
    rule = RULES[file]
    with TemporaryDirectory() as folder:
        flags = isa_flags(SOURCES[file])
        built = compile_object(SOURCES[file], Path(folder) / "kernel.o", flags, with_compiler)
        found = [loop for loop in loops(disassemble(built)) if loop.innermost and loop.uses(rule.instruction)]
    return [loop for loop in found if not (rule.without and loop.uses(*rule.without))]


def test_every_file_of_kernels_for_an_instruction_set_is_checked() -> None:
    assert set(RULES) == set(SOURCES)


@COMPILERS
@pytest.mark.parametrize("file", RULES)
def test_inner_loops_write_no_vector_to_the_stack(file: str, with_compiler: str) -> None:
    found = inner_loops(file, with_compiler)
    assert found, f"no loop of {file} has {RULES[file].instruction}"
    stores = [line for loop in found for line in loop.stores()]
    assert stores == []


@COMPILERS
@pytest.mark.parametrize("file", RULES)
def test_inner_loops_read_from_the_stack_only_what_is_there_by_design(file: str, with_compiler: str) -> None:
    found = [loop for loop in inner_loops(file, with_compiler) if not RULES[file].may_read(loop)]
    reads = [line for loop in found for line in loop.reads()]
    assert reads == []


@COMPILERS
def test_every_variant_of_the_avx512_look_ups_has_its_loop(with_compiler: str) -> None:
    found = {
        loop.function.split("add_tiles<")[-1].split(">(")[0]
        for loop in inner_loops("bcq_matmul/avx512.cc", with_compiler)
    }
    sizes = {f"{rows}, 0" for rows in (2, 4, 8)} | {f"1, {bits}" for bits in range(5)}
    variants = {f"{size}, {gaps}" for size in sizes for gaps in ("false", "true")}
    assert {name.split("::")[-1] for name in found} == {f"{m}, {v}" for m in ("T8", "T16") for v in variants}


SPILLING = """
#include <immintrin.h>
extern "C" void planted(const __m256i* table, const __m256i* index, __m256i* sums, long count) {
  __m256i s[20];
  for (int i = 0; i < 20; ++i) s[i] = sums[i];
  do {
#pragma GCC unroll 20
    for (int i = 0; i < 20; ++i) s[i] = _mm256_add_epi8(s[i], _mm256_shuffle_epi8(table[i], *index));
    ++index;
  } while (--count > 0);
  for (int i = 0; i < 20; ++i) sums[i] = s[i];
}
"""


@COMPILERS
def test_a_planted_spill_is_found_with_its_function_and_instruction(
    with_compiler: str, tmp_path: Path
) -> None:
    # Twenty sums do not fit into sixteen registers, whatever a compiler does.
    source = tmp_path / "planted.cc"
    source.write_text(SPILLING)
    built = compile_object(source, tmp_path / "planted.o", AVX2, with_compiler)
    spilling = [loop for loop in loops(disassemble(built)) if loop.innermost and loop.uses("vpshufb")]
    stores = [line for loop in spilling for line in loop.stores()]
    reads = [line for loop in spilling for line in loop.reads()]
    assert len(stores) >= 4
    assert len(reads) >= 4
    assert all(line.startswith("planted at ") and "%ymm" in line for line in stores + reads)


def replaceable_symbols(built: Path) -> list[str]:
    """Symbols of which a linker keeps one of several copies, perhaps one compiled for another CPU."""
    listed = subprocess.run(["nm", "-C", str(built)], capture_output=True, text=True, check=True).stdout
    symbols = [line[17:] for line in listed.splitlines()]
    # DW.ref.*: holds the address of C++'s own function for exceptions, and no code.
    return [symbol for symbol in symbols if symbol[0] in "WwVvu" and "DW.ref." not in symbol]


@pytest.mark.parametrize("file", SOURCES)
def test_no_function_of_a_kernel_can_be_replaced_by_a_copy_for_another_cpu(file: str, tmp_path: Path) -> None:
    # Without optimization no inline function or template disappears into its callers.
    built = compile_object(SOURCES[file], tmp_path / "kernel.o", (*isa_flags(SOURCES[file]), "-O0", "-w"))
    assert replaceable_symbols(built) == []


def test_a_planted_inline_function_is_found_as_replaceable(tmp_path: Path) -> None:
    source = tmp_path / "planted.cc"
    source.write_text("inline int planted() { return 1; }\nint caller() { return planted(); }\n")
    assert replaceable_symbols(compile_object(source, tmp_path / "planted.o", ("-O0",))) == ["W planted()"]


def assembly(*lines: str) -> str:
    """As objdump prints a function, one address a line."""
    return "\n".join(
        ["0000000000000000 <f>:", *(f"  {address:x}:\t{text}" for address, text in enumerate(lines, 1))]
    )


def innermost(*lines: str) -> list[list[int]]:
    """Addresses of the innermost loops."""
    return [[i.address for i in loop.code] for loop in loops(parse(assembly(*lines))) if loop.innermost]


def test_a_loop_is_found_by_its_backward_jump() -> None:
    assert innermost("nop", "vpshufb", "jne 2 <f+2>", "ret") == [[2, 3]]


def test_a_loop_that_is_entered_in_its_middle_is_found() -> None:
    assert innermost("jmp 3 <f+3>", "vpshufb", "test %rax,%rax", "jne 2 <f+2>", "ret") == [[2, 3, 4]]


def test_a_block_behind_the_end_of_its_loop_belongs_to_it() -> None:
    lines = ("test %rax,%rax", "je 5 <f+5>", "jne 1 <f+1>", "ret", "vpshufb", "jmp 3 <f+3>")
    assert innermost(*lines) == [[1, 2, 3, 5, 6]]


def test_only_the_inner_one_of_two_loops_is_innermost() -> None:
    assert innermost("nop", "vpshufb", "jne 2 <f+2>", "jne 1 <f+1>", "ret") == [[2, 3]]


def test_a_loop_behind_a_jump_by_table_is_found() -> None:
    assert innermost("jmp *%rax", "vpshufb", "jne 2 <f+2>", "ret") == [[2, 3]]


def test_straight_code_has_no_loop() -> None:
    assert innermost("vpshufb", "je 3 <f+3>", "ret") == []


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("vmovdqa %ymm1,0x20(%rsp)", "stores"),
        ("vmovapd %xmm1,(%rsp)", "stores"),
        ("vmovaps %ymm1,0x40(%rsp,%rax,4)", ""),  # an array
        ("vmovdqu64 -0x40(%rsp),%zmm31", "reads"),
        ("vfmadd231ps 0x40(%rsp),%zmm1,%zmm2", "reads"),
        ("mov 0x20(%rsp),%rax", ""),
        ("vmovdqa %ymm1,0x20(%rbp)", ""),  # no frame: %rbp is a register like any other
    ],
)
def test_stores_and_reads_of_vectors_are_told_apart(text: str, seen: str) -> None:
    (loop,) = loops(parse(assembly(text, "jne 1 <f+1>", "ret")))
    told = [f"f at 1: {text}"]
    assert (loop.stores(), loop.reads()) == (told * (seen == "stores"), told * (seen == "reads"))


def test_with_a_frame_its_pointer_counts_as_the_stack() -> None:
    code = assembly("mov %rsp,%rbp", "vmovdqa %ymm1,0x20(%rbp)", "jne 2 <f+2>", "ret")
    (loop,) = loops(parse(code))
    assert loop.stores() == ["f at 2: vmovdqa %ymm1,0x20(%rbp)"]


def test_a_missing_compiler_is_a_skip_and_not_a_pass() -> None:
    with pytest.raises(pytest.skip.Exception, match="not installed"):
        compiler("no-such-compiler")


def test_a_file_that_does_not_compile_fails(tmp_path: Path) -> None:
    source = tmp_path / "broken.cc"
    source.write_text("int f( {")
    with pytest.raises(subprocess.CalledProcessError):
        compile_object(source, tmp_path / "broken.o", ())
