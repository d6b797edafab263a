# SPDX-License-Identifier: Apache-2.0
"""What the passes hand to each other: the matrices of one graph and the nodes that read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from bcq import contract
from bcq.passes.report import PackReport
from bcq.passes.weights import MatrixRef, WeightSource
from bcq.progress import Progress

MATMUL = "matmul"
GEMM = "gemm"
GATHER = "gather"


@dataclass(frozen=True)
class Reading:
    """One node that reads a constant matrix and can read the packed one instead.

    Attributes:
        node: a MatMul, Gemm or Gather of the main graph.
        kind: ``matmul``, ``gemm`` or ``gather``.
        dtype: element type of the matrix where the node reads it, which is the type of the node's result.
    """

    node: ir.Node
    kind: str
    dtype: ir.DataType


@dataclass(frozen=True)
class PackedValues:
    """The packed matrix inside the graph: four initializers and the attributes that describe them."""

    tensors: tuple[ir.Value, ...]
    attributes: dict[str, int | str]

    def node(self, op: contract.Op, first_input: ir.Value, replaced: ir.Node) -> ir.Node:
        """The operator ``op`` on this matrix, in the place of ``replaced``, with all its attributes."""
        return ir.node(
            op.name,
            [first_input, *self.tensors],
            attributes={name: self.attributes[name] for name in op.attributes},
            domain=contract.DOMAIN,
            name=replaced.name,
        )


@dataclass
class Matrix:
    """One constant matrix, the nodes that can read it packed, and why others (if any) need it dense.

    Attributes:
        ref: the matrix as the weight source sees it.
        readings: nodes that can read the packed matrix.
        dense_readers: one reason for each reader that cannot.
        dense_bytes: bytes of all values as float32.
        copies: every stored tensor that holds these values.
        packed: set when it was packed.
    """

    ref: MatrixRef
    readings: list[Reading]
    dense_readers: list[str]
    dense_bytes: int
    copies: list[ir.TensorProtocol]
    packed: PackedValues | None = None


@dataclass
class Work:
    """The state of one run of the pipeline."""

    source: WeightSource
    progress: Progress
    accuracy_level: int = 0  # of every BcqMatMul, ops/README.md
    matrices: list[Matrix] = field(default_factory=list)
    report: PackReport = field(default_factory=PackReport)

    def packed_readings(self, kind: str) -> Iterator[tuple[Reading, PackedValues]]:
        """Each node of one kind with the packed matrix that it shall read."""
        for matrix in self.matrices:
            if matrix.packed is not None:
                for reading in matrix.readings:
                    if reading.kind == kind:
                        yield reading, matrix.packed
