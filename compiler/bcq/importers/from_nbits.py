# SPDX-License-Identifier: Apache-2.0
"""MatMulNBits(A, W) becomes BcqMatMul(A, W) and an Add of the bias."""

from __future__ import annotations

import dataclasses
import hashlib
import re

import onnx_ir as ir

from bcq import contract, packing
from bcq.importers.factors import factors_of, relative_error
from bcq.importers.nbits import NbitsMatrix, bias_of, is_nbits, read_node
from bcq.importers.result import ImportedMatrix
from bcq.matrices.resume import Finished
from bcq.packing import PackedWeight
from bcq.passes import Left, MatrixRef, naming, sweep
from bcq.passes.carry_functions import carry_functions
from bcq.passes.modernize import modernize
from bcq.passes.pack_matrices import pack_matrices
from bcq.passes.rewrite import Replacement
from bcq.passes.work import Matrix, Reading, Work

KIND = "matmulnbits"
_ADDED = re.compile(r"(_Q\d+(G\d+)?|\.qweight|_quantized)$")


class NbitsSource:
    """Gives each node's matrix as BCQ; finished ones wait on the disk.

    Args:
        inexact: one of `bcq.importers.factors.INEXACT`.
        finished: the open store of the output folder.
    """

    def __init__(self, inexact: str, finished: Finished) -> None:
        self.errors: dict[str, float] = {}
        self.results: list[ImportedMatrix] = []
        self._inexact = inexact
        self._finished = finished
        self._matrices: dict[int, NbitsMatrix] = {}

    def add(self, matrix: NbitsMatrix) -> None:
        """Makes a matrix known, by its tensor of levels."""
        self._matrices[id(matrix.levels)] = matrix

    def identity(self, matrix: MatrixRef) -> str:
        """The tensors that a node reads: nodes that share all of them share a matrix."""
        known = self._matrices[id(matrix.tensor)]
        sizes = (known.rows, known.inputs, known.bits, known.group_size)
        return f"{sizes} {[id(tensor) for tensor in known.tensors()]}"

    def pack(self, matrix: MatrixRef) -> PackedWeight | Left:
        """The packed matrix.

        Raises:
            InputError: E106 for a scale that is NaN or infinite.
            UnsupportedError: E403 when float16 factors cannot hold it.
        """
        known = self._matrices[id(matrix.tensor)]
        scales, words = known.read_scales(), known.read_words()
        factors = factors_of(scales, matrix.name, self._inexact)
        weight = factors.weight(words, known.inputs, known.group_size)
        error = relative_error(words, scales, weight) if factors.rounded else 0.0
        exact = not factors.rounded
        self.results.append(ImportedMatrix(matrix.name, factors.planes, exact, factors.worst, error))
        self.errors[matrix.name] = error
        key = hashlib.sha256(matrix.name.encode()).hexdigest()
        return self._finished.keep(key, packing.pack(weight), error)


def find_nbits(model: ir.Model, work: Work) -> None:
    """Fills ``work.matrices`` with those of all MatMulNBits nodes."""
    assert isinstance(work.source, NbitsSource)  # the pipeline below is run with no other
    for node in list(model.graph.all_nodes()):
        if not is_nbits(node):
            continue
        matrix = read_node(node, model.graph)
        work.source.add(matrix)
        ref = MatrixRef(_name(node, matrix), matrix.rows, matrix.inputs, False, matrix.levels, (KIND,))
        reading = Reading(node, KIND, matrix.dtype)
        size = 4 * matrix.rows * matrix.inputs
        work.matrices.append(Matrix(ref, [reading], [], size, matrix.tensors()))


def _name(node: ir.Node, matrix: NbitsMatrix) -> str:
    """By the path of the node where it has one, else by the tensor without what a quantizer has added."""
    stored = _ADDED.sub("", matrix.levels.name or "")
    return naming.name_after(node) if "/" in (node.name or "") or naming.is_nameless(stored) else stored


def rewrite_nbits(model: ir.Model, work: Work) -> None:
    """Rewrites every node; each keeps its own accuracy level."""
    taken = naming.value_names(model)
    for reading, packed in work.packed_readings(KIND):
        node, activation, bias = reading.node, reading.node.inputs[0], bias_of(reading.node)
        assert activation is not None  # it is no optional input
        level = node.attributes.get_int("accuracy_level", 0) or 0
        own = dataclasses.replace(packed, attributes={**packed.attributes, "accuracy_level": level})
        new = Replacement(model, node, taken)
        result = new.add(own.node(contract.MATMUL, activation, node), reading.dtype)
        if bias is not None:
            new.add(ir.node("Add", [result, bias]), reading.dtype)
        new.finish()


PIPELINE = (
    modernize,
    find_nbits,
    pack_matrices,
    rewrite_nbits,
    carry_functions,
    sweep.sweep_dead,
    sweep.sweep_traces,
)
