# SPDX-License-Identifier: Apache-2.0
"""Loops in the machine code of an object file, and what goes through the stack in them, from objdump."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from native_builds import compiler

FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\t(.*)$")
JUMP = re.compile(r"^(?:notrack )?j\w+\s+([0-9a-f]+)")
ENDS = re.compile(r"^(?:notrack )?(?:jmp|ret|ud2|hlt)")  # nothing falls through
BY_TABLE = re.compile(r"^(?:notrack )?jmp\s+\*")
FRAME = re.compile(r"mov\s+%rsp,%rbp")  # otherwise compilers use %rbp like any other register
VECTOR = re.compile(r"%[xyz]mm\d+")

Graph = dict[int, set[int]]


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly."""

    address: int
    text: str

    @property
    def name(self) -> str:
        """The mnemonic."""
        return self.text.split(maxsplit=1)[0]

    @property
    def target(self) -> int | None:
        """Where a direct jump goes."""
        jump = JUMP.match(self.text)
        return int(jump[1], 16) if jump else None


@dataclass(frozen=True)
class Loop:
    """A loop: the instructions of its blocks by address, and the registers that point into the stack."""

    function: str
    code: tuple[Instruction, ...]
    stack: str
    innermost: bool

    def uses(self, *names: str) -> bool:
        """Whether an instruction's mnemonic begins with one of the names."""
        return any(instruction.name.startswith(names) for instruction in self.code)

    def stack_traffic(self) -> list[Instruction]:
        """Instructions with a vector register and a fixed place on the stack; arrays there have an index."""
        on_stack = re.compile(rf"\({self.stack}\)")
        return [i for i in self.code if VECTOR.search(i.text) and on_stack.search(i.text)]

    def stores(self) -> list[str]:
        """The vectors that are written to the stack: spills."""
        return [self._tell(i) for i in self.stack_traffic() if i.text.endswith(")")]

    def reads(self) -> list[str]:
        """The vectors that are read from the stack."""
        return [self._tell(i) for i in self.stack_traffic() if not i.text.endswith(")")]

    def _tell(self, instruction: Instruction) -> str:
        return f"{self.function} at {instruction.address:x}: {instruction.text}"


def disassemble(built: Path) -> dict[str, list[Instruction]]:
    """The functions of an object file by demangled name."""
    command = [compiler("objdump"), "-d", "-C", "--no-show-raw-insn", str(built)]
    return parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse(assembly: str) -> dict[str, list[Instruction]]:
    """The same from what objdump prints."""
    functions: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in assembly.splitlines():
        if header := FUNCTION.match(line):
            name = header[1] if header[1] not in functions else f"{header[1]} #{len(functions)}"
            code = functions.setdefault(name, [])
        elif found := INSTRUCTION.match(line):
            code.append(Instruction(int(found[1], 16), found[2].split("#")[0].strip()))
    return {name: code for name, code in functions.items() if code}


def basic_blocks(code: list[Instruction]) -> dict[int, list[Instruction]]:
    """Straight runs of instructions by the address of the first."""
    starts = {i.target for i in code} | {code[0].address}
    starts |= {b.address for a, b in pairwise(code) if a.target or ENDS.match(a.text)}
    blocks: dict[int, list[Instruction]] = {}
    for instruction in code:
        if instruction.address in starts:
            block = blocks.setdefault(instruction.address, [])
        block.append(instruction)
    return blocks


def flow(blocks: dict[int, list[Instruction]]) -> Graph:
    """Where control may go from each block. A jump by table may go wherever nothing else leads to."""
    graph: Graph = {}
    for start, following in zip(blocks, [*list(blocks)[1:], None], strict=True):
        last = blocks[start][-1]
        falls = {following} if following is not None and not ENDS.match(last.text) else set()
        graph[start] = falls | {target for target in (last.target,) if target in blocks}
    orphans = blocks.keys() - set().union(*graph.values()) - {next(iter(blocks))}
    for start, block in blocks.items():
        if BY_TABLE.match(block[-1].text):
            graph[start] |= orphans
    return graph


def reachable(graph: Graph, start: int, inside: set[int]) -> set[int]:
    """What can be reached from a block, itself included, without leaving some blocks."""
    seen, waiting = {start}, [start]
    while waiting:
        new = graph[waiting.pop()] & inside - seen
        seen |= new
        waiting += new
    return seen


def cycles(graph: Graph, inside: set[int]) -> Iterator[tuple[set[int], bool]]:
    """Loops within some blocks, and whether they are innermost; inner ones are left when a head is gone."""
    back: Graph = {start: set() for start in graph}
    for start, targets in graph.items():
        for target in targets:
            back[target].add(start)
    left = set(inside)
    while left:
        start = min(left)
        loop = reachable(graph, start, left) & reachable(back, start, left)
        left -= loop
        if len(loop) == 1 and start not in graph[start]:
            continue
        heads = [block for block in loop if back[block] - loop]
        inner = list(cycles(graph, loop - {min(heads, default=start)}))
        yield loop, not inner
        yield from inner


def loops(functions: dict[str, list[Instruction]]) -> list[Loop]:
    """Every loop of the functions."""
    found = []
    for name, code in functions.items():
        stack = "%r[sb]p" if any(FRAME.match(instruction.text) for instruction in code) else "%rsp"
        blocks = basic_blocks(code)
        for loop, innermost in cycles(flow(blocks), set(blocks)):
            lines = tuple(instruction for start in sorted(loop) for instruction in blocks[start])
            found.append(Loop(name, lines, stack, innermost))
    return found
