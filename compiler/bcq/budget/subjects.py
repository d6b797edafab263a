# SPDX-License-Identifier: Apache-2.0
"""The matrices that a budget decides on, and what the rest of the exported file weighs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.bcq import Float32
from bcq.budget.formats import Format, aligned
from bcq.matrices.plan import Choice, QuantizeOptions, check_overrides, choice_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from bcq.files.checkpoint import Checkpoint
    from bcq.matrices.find import MatrixInfo
    from bcq.passes import Left, MatrixRef

EMBEDDING, HEAD, LINEAR = "embedding", "head", "linear"
# Nodes, names and functions of model.onnx without weights; measured: docs/decisions/0013-budgets.md.
_GRAPH_BYTES = 10_000
_GRAPH_BYTES_OF_MATRIX = 3_200
_GRAPH_BYTES_OF_NODE = 330


@dataclass(frozen=True)
class Subject:
    """One matrix.

    Attributes:
        name: parameter or initializer name.
        kind: ``embedding`` (rows are looked up), ``head`` (looked up and multiplied with) or ``linear``.
        rows: N.
        inputs: K.
        dense_bytes: what it takes in the exported file when it stays dense.
        read: gives the matrix, float32 ``[N, K]``.
        fixed: what the user has decided by ``--set`` or ``--no-embeddings``; None where the budget decides.
        transposed: whether the parameter of a model's class is ``[K, N]``.
    """

    name: str
    kind: str
    rows: int
    inputs: int
    dense_bytes: int
    read: Callable[[], Float32]
    fixed: Format | None = None
    transposed: bool = False

    @property
    def weights(self) -> int:
        """N K."""
        return self.rows * self.inputs


@dataclass(frozen=True)
class Model:
    """What a budget is spent on.

    Attributes:
        subjects: matrices that can be packed, in the order of the model.
        other_bytes: an upper bound of everything else in ``model.onnx`` and its data file.
    """

    subjects: tuple[Subject, ...]
    other_bytes: int


def read_model(source: str | Path, options: QuantizeOptions) -> Model:
    """Finds the matrices of a model folder or an ``.onnx`` file; weights stay on the disk.

    Raises:
        BcqError: what reading a model raises; E201 for a ``--set`` that fits no matrix.
    """
    path = Path(source)
    return _of_graph(path, options) if path.is_file() else _of_folder(path, options)


def _of_folder(folder: Path, options: QuantizeOptions) -> Model:
    from bcq.files.checkpoint import Checkpoint
    from bcq.matrices.find import find_matrices
    from bcq.quantize import plan

    planned = {matrix.name: matrix for matrix in plan(folder, options)}  # with all checks of `quantize`
    checkpoint = Checkpoint.open(folder)
    found = find_matrices(checkpoint)
    tied = {info.tied_to for info in found}
    stored = [info for info in found if not info.tied_to]
    subjects = []
    for info in stored:
        if planned[info.name].bits is not None or planned[info.name].requested:
            choice = choice_for(info.name, options, info.kind == "embedding")
            subjects.append(_of_parameter(checkpoint, info, info.name in tied, choice))
    names = {subject.name for subject in subjects}
    known = {info.stored for info in stored if info.name in names}
    other = sum(aligned(4 * count) for name, count in _sizes(checkpoint).items() if name not in known)
    return Model(tuple(subjects), other + _GRAPH_BYTES + _GRAPH_BYTES_OF_MATRIX * len(stored))


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Elements of every parameter of the model by its name in the checkpoint."""
    from bcq.frontends.names import stored_names
    from bcq.frontends.weightless import any_weightless_model

    module = any_weightless_model(checkpoint)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    names = stored_names(module, checkpoint.tensors, checkpoint.folder)
    return {stored: parameters[name].numel() for name, stored in names.items()}


def _of_parameter(checkpoint: Checkpoint, info: MatrixInfo, tied: bool, choice: Choice) -> Subject:
    def read() -> Float32:
        dense = checkpoint.read(info.stored)
        return dense.T if info.transposed else dense

    embedding = HEAD if tied else EMBEDDING
    return Subject(
        name=info.name,
        kind=embedding if info.kind == "embedding" else LINEAR,
        rows=info.rows,
        inputs=info.inputs,
        dense_bytes=aligned(4 * info.rows * info.inputs),
        read=read,
        fixed=_fixed(choice),
        transposed=info.transposed,
    )


class _Listing:
    """A weight source that packs nothing and remembers what could be packed."""

    def __init__(self, options: QuantizeOptions) -> None:
        from bcq.passes import SolveOnTheFly

        self._solver = SolveOnTheFly(options)
        self.subjects: list[Subject] = []

    def identity(self, matrix: MatrixRef) -> str:
        """As when it is packed, so that equal matrices are one."""
        return self._solver.identity(matrix)

    def pack(self, matrix: MatrixRef) -> Left:
        """Leaves the matrix dense."""
        from bcq.passes import Left
        from bcq.passes.weights import GATHER_KIND, why_never_packed

        reason = why_never_packed(matrix)
        if not reason:
            looked_up = GATHER_KIND in matrix.kinds
            kind = LINEAR if not looked_up else HEAD if len(matrix.kinds) > 1 else EMBEDDING
            choice = choice_for(matrix.name, self._solver.options, embedding=looked_up)
            dense_bytes = aligned(matrix.tensor.nbytes)
            sizes = (matrix.rows, matrix.inputs, dense_bytes)
            self.subjects.append(Subject(matrix.name, kind, *sizes, matrix.read, _fixed(choice)))
        return Left(reason)


def _of_graph(path: Path, options: QuantizeOptions) -> Model:
    from bcq import passes
    from bcq.frontends import onnx_file

    source = _Listing(options)
    model = onnx_file.load(path)
    with onnx_file.explained(path):
        records = passes.run(model, source).matrices
    check_overrides(options, [record.name for record in records])
    taken = sum(subject.dense_bytes for subject in source.subjects)
    return Model(tuple(source.subjects), max(0, _dense_file_bytes(model) - taken))


def _dense_file_bytes(model: ir.Model) -> int:
    """What the file would take with every matrix dense."""
    tensors: dict[int, Any] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                tensors[id(value.const_value)] = value.const_value
    nodes = sum(1 for _ in model.graph.all_nodes())
    return (
        sum(aligned(tensor.nbytes) for tensor in tensors.values())
        + _GRAPH_BYTES
        + _GRAPH_BYTES_OF_NODE * nodes
    )


def _fixed(choice: Choice) -> Format | None:
    return Format(choice.bits, choice.group_size, choice.offset) if choice.requested else None
