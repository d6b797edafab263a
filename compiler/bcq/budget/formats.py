# SPDX-License-Identifier: Apache-2.0
"""The ways in which a budget may pack a matrix, and what each of them weighs."""

from __future__ import annotations

from dataclasses import dataclass

from bcq import contract
from bcq.exporting.write import ALIGNMENT, MIN_EXTERNAL_BYTES
from bcq.matrices.listing import tile16_bytes
from bcq.matrices.plan import KEEP, Override

# Which of all 8 x 5 x 2 formats were ever the best choice: docs/decisions/0013-budgets.md.
BITS = (1, 2, 3, 4, 5, 6)
GROUPS_OF_FEW_BITS = (0, 128, 64, 32)  # up to FEW_BITS; 0 is row-wise
GROUPS_OF_MANY_BITS = (0, 128)
FEW_BITS = 3


@dataclass(frozen=True)
class Format:
    """Planes, group size and offset of one matrix.

    Attributes:
        bits: q, or None where it stays dense.
        group_size: g, 0 for one group a row.
        offset: whether each group has an offset.
    """

    bits: int | None
    group_size: int = 0
    offset: bool = False

    def override(self, name: str) -> Override:
        """The ``--set`` that asks for it."""
        if self.bits is None:
            return Override(exactly(name), None)
        return Override(exactly(name), self.bits, self.group_size, self.offset)

    @property
    def label(self) -> str:
        """The same without a name, such as ``3:g0:offset``."""
        return str(self.override("")).removeprefix("=")

    def nbytes(self, rows: int, inputs: int) -> int:
        """Bytes of a packed matrix, padding of rows included; it is not dense."""
        assert self.bits is not None
        return tile16_bytes(rows, inputs, self.bits, self.group_size, self.offset)

    def file_bytes(self, rows: int, inputs: int) -> int:
        """Bytes that its tensors take in an exported data file, each from a page of its own."""
        assert self.bits is not None
        tiles = contract.TILE_ROWS * -(-rows // contract.TILE_ROWS)
        groups = -(-inputs // (self.group_size or inputs))
        codes = 4 * tiles * -(-inputs // contract.WORD_BITS) * self.bits
        scales = 2 * tiles * groups
        parts = (codes, scales, scales * (self.bits - 1), scales * self.offset)
        return sum(aligned(part) for part in parts)


DENSE = Format(None)


def formats(inputs: int) -> list[Format]:
    """All that are tried for a matrix of ``inputs`` features; a group of a whole row or more is row-wise."""
    found = []
    for bits in BITS:
        for group_size in GROUPS_OF_FEW_BITS if bits <= FEW_BITS else GROUPS_OF_MANY_BITS:
            if group_size < inputs:
                found += [Format(bits, group_size, offset) for offset in (False, True)]
    return found


def parse_label(label: str) -> Format:
    """The format of a :attr:`Format.label`.

    Raises:
        UsageError: E202 when it is none.
    """
    from bcq.matrices.plan import parse_override

    read = parse_override(f"*={label}")
    return Format(read.bits, read.group_size or 0, bool(read.offset)) if label != KEEP else DENSE


def aligned(nbytes: int) -> int:
    """What a tensor of so many bytes takes: small ones stay in the model file, others start on a page."""
    return nbytes if nbytes < MIN_EXTERNAL_BYTES else -(-nbytes // ALIGNMENT) * ALIGNMENT


def exactly(name: str) -> str:
    """The pattern that matches a name with characters that patterns give a meaning."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
