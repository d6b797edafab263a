# SPDX-License-Identifier: Apache-2.0
"""What became of every matrix of a graph: packed, or left dense and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class MatrixRecord:
    """One distinct matrix; a tied embedding and head are one.

    Attributes:
        name: parameter or initializer name.
        kinds: how the graph reads it: ``matmul``, ``gemm``, ``gather``, or another operator's type.
        rows: N.
        inputs: K.
        bits: q, or None when it counts as dense: no reader was packed, or some reader needs a dense copy.
        group_size: g, 0 when it counts as dense.
        dense_bytes: bytes of the matrix as float32.
        packed_bytes: bytes of its four packed tensors, 0 when no reader was packed.
        reason: why it counts as dense; empty otherwise.
        requested: the user asked for it to stay dense.
        relative_error: sum of squared errors over the sum of squared weights; None when it counts as dense,
            or when the source does not know it.
        offset: whether its groups have offsets.
    """

    name: str
    kinds: tuple[str, ...]
    rows: int
    inputs: int
    bits: int | None
    group_size: int
    dense_bytes: int
    packed_bytes: int
    reason: str
    requested: bool = False
    relative_error: float | None = None
    offset: bool = False

    @property
    def packed(self) -> bool:
        """True when all readers read the packed matrix and no dense copy is left."""
        return self.bits is not None


@dataclass(frozen=True)
class Fusion:
    """Matrices that one node multiplies with, because they read the same activations; or why one does not.

    Attributes:
        name: what the fused matrix is called in the file; empty when none was made.
        parts: names of the matrices, in the order of their rows.
        reason: why the only matrix in `parts` was left apart; empty otherwise.
    """

    name: str
    parts: tuple[str, ...]
    reason: str


@dataclass
class PackReport:
    """All matrices of one graph, in the order in which the graph reads them, and which were fused."""

    matrices: list[MatrixRecord] = field(default_factory=list)
    fusions: list[Fusion] = field(default_factory=list)

    @property
    def packed_count(self) -> int:
        """Matrices of which no dense copy is left."""
        return sum(record.packed for record in self.matrices)

    @property
    def total_count(self) -> int:
        """All matrices, those that the user keeps included."""
        return len(self.matrices)

    @property
    def packed_share(self) -> float:
        """Share of dense bytes that are packed, 0 to 1; matrices that the user keeps are left out."""
        wanted = [record for record in self.matrices if not record.requested]
        if not wanted:
            return 1.0 if self.matrices else 0.0
        return sum(r.dense_bytes for r in wanted if r.packed) / sum(r.dense_bytes for r in wanted)


def joined(reports: Iterable[PackReport]) -> PackReport:
    """One report on several graphs of a model; a matrix that several read is packed when all read it so."""
    matrices: dict[str, MatrixRecord] = {}
    fusions: list[Fusion] = []
    for report in reports:
        fusions += report.fusions
        for record in report.matrices:
            known = matrices.get(record.name, record)
            kinds = tuple(dict.fromkeys((*known.kinds, *record.kinds)))
            matrices[record.name] = replace(known if not known.packed else record, kinds=kinds)
    return PackReport(list(matrices.values()), fusions)
