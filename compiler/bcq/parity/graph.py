# SPDX-License-Identifier: Apache-2.0
"""Parity of an export of an ``.onnx`` file: onnxruntime runs the original graph with dequantized weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bcq import parity
from bcq.errors import InputError, ParityFailure
from bcq.files.exported import ExportedWeights
from bcq.parity import ParityResult
from bcq.precisions.files import MODEL_FILE
from bcq.progress import Progress
from bcq.runtime import one_line, session

_BATCH, _PAST, _SEQUENCE = 2, 3, 4
_NEAR = (
    0.9  # relative distance of a matrix to its own dequantized form (0.6 with one bit; to another one 1.4)
)
_SAMPLE_ROWS = 16
_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
}


def verify_graph(folder: Path, against: Path | None, progress: Progress) -> ParityResult:
    """See `bcq.parity.verify`; without an original, the functions that the file carries are the reference."""
    progress.start("verify", 2 if against is None else 3)
    weights = ExportedWeights.open(folder)
    running = session(folder)
    plain = session(folder if against is None else against, with_library=False)
    feeds, original = _first_run(plain, running, weights)
    progress.step("onnxruntime on the functions" if against is None else "onnxruntime on the original graph")
    got = _run(running, feeds)
    progress.step("onnxruntime with the library")
    allowed = parity.tolerance(
        weights, half=any(array.dtype == np.float16 for array in [*got, *feeds.values()])
    )
    if against is None:
        progress.done()
        return parity.compare(_rows(got), _rows(original), allowed)
    expected = run_dense(against, weights, feeds)
    progress.step("onnxruntime on the original graph, dequantized weights")
    progress.done()
    result = parity.compare(_rows(got), _rows(expected), allowed)
    return replace(result, original=parity.against_original(_rows(got), _rows(original)))


def _first_run(
    plain: Any, running: Any, weights: ExportedWeights
) -> tuple[dict[str, NDArray[Any]], list[NDArray[Any]]]:
    """Feeds that the reference takes, and what it answers; a graph may hold only for a batch of one.

    Raises:
        InputError: E102 when it takes neither two rows nor one.
    """
    try:
        feeds = random_feeds(running, weights)
        return feeds, list(plain.run(None, feeds))
    except Exception:  # onnxruntime's classes share no base of their own
        feeds = random_feeds(running, weights, batch=1)
    try:
        return feeds, list(plain.run(None, feeds))
    except Exception as fault:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
        raise InputError(
            "E102", f"the original graph does not run on inputs {shapes}: {one_line(fault)}"
        ) from fault


def _run(running: Any, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    try:
        return list(running.run(None, feeds))
    except Exception as fault:
        reason = f"the export does not run on inputs that the original takes: {one_line(fault)}"
        raise ParityFailure("E501", reason) from fault


def run_dense(path: Path, weights: ExportedWeights, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Runs the original graph after each matrix took the values that its packed form stands for.

    Raises:
        InputError: E109 when a packed matrix resembles no constant of the original.
        UnsupportedError: E401 for a MatMulNBits whose matrix cannot be told.
    """
    from bcq.exporting.write import write_model
    from bcq.frontends import onnx_file
    from bcq.importers.as_dense import dense_products

    model = onnx_file.load(path)
    dense_products(model)
    substitute(model, weights)
    with tempfile.TemporaryDirectory(prefix="bcq-") as folder:
        write_model(model, Path(folder) / MODEL_FILE)
        return list(session(folder, with_library=False).run(None, feeds))


def substitute(model: ir.Model, weights: ExportedWeights) -> None:
    """Gives every constant of `model` that was packed its dequantized values, found by nearness, not by name.

    An exporter may have folded a transposition into a constant and lost its name; both directions are tried.
    A constant that nodes read in both directions was packed twice: each node gets its direction's values.
    """
    left = set(weights.packed)
    heads = first_rows(weights)
    for constant, tensor in list(_constants(model)):
        near = _alike(tensor.numpy(), weights, heads)
        left -= {match.name for match in near}
        best = {match.turned: match for match in reversed(near)}
        for turned, match in best.items():
            values = _values(weights, match).astype(tensor.dtype.numpy())
            replacement = ir.Tensor(values, name=constant.name)
            if len(best) == 1 and constant.name not in weights.dense:
                constant.const_value = replacement
            else:
                _replace_readers(model, constant, replacement, turned)
    if left:
        raise InputError(
            "E109",
            f"packed matrix '{min(left)}' resembles no matrix of the original.",
            "Give the file that the export was made from.",
        )


def _replace_readers(model: ir.Model, constant: ir.Value, tensor: ir.TensorProtocol, turned: bool) -> None:
    """Gives the nodes that read a constant in one direction a constant of their own."""
    readers = [use for use in constant.uses() if _direction(use.node, use.idx) == turned]
    own = ir.Value(
        name=f"{constant.name}.{'turned' if turned else 'straight'}",
        shape=constant.shape,
        type=constant.type,
        const_value=tensor,
    )
    tensor.name = own.name
    model.graph.register_initializer(own)
    for node, index in readers:
        node.replace_input_with(index, own)


def _direction(node: ir.Node, index: int) -> bool | None:
    """True when a node reads a constant as [K, N], whose packed form is turned; None: it is not packed."""
    if node.op_type == "Gemm" and index == 1:
        return not node.attributes.get_int("transB", 0)
    if node.op_type == "MatMul" and index == 1:
        return True
    straight = node.op_type == "Transpose" or (
        node.op_type == "Gather" and index == 0 and not node.attributes.get_int("axis", 0)
    )
    return False if straight else None


def random_feeds(running: Any, weights: ExportedWeights, batch: int = _BATCH) -> dict[str, NDArray[Any]]:
    """Seeded inputs for any graph: tokens within the vocabulary, masks of ones, positions in order."""
    inputs = running.get_inputs()
    past = _PAST if any("past" in value.name for value in inputs) else 0
    random = np.random.default_rng(0)
    return {value.name: _feed(value, _shape(value, past, batch), past, weights, random) for value in inputs}


def _feed(
    value: Any, shape: list[int], past: int, weights: ExportedWeights, random: np.random.Generator
) -> NDArray[Any]:
    dtype = _TYPES.get(value.type)
    if dtype is None:
        raise InputError(
            "E102", f"input '{value.name}': got type {value.type}, expected one of {', '.join(_TYPES)}."
        )
    if "mask" in value.name:
        return np.ones(shape, dtype)
    if "position" in value.name and shape:
        return np.broadcast_to(np.arange(past, past + shape[-1]), shape).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        return random.integers(0, weights.gather_rows.get(value.name, 1), shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def _shape(value: Any, past: int, batch: int) -> list[int]:
    """Fixed sizes as they are; a free first axis is the batch, others past (of a cache) or sequence."""
    free = _SEQUENCE
    if "past" in value.name:
        free = past
    elif "mask" in value.name:
        free = past + _SEQUENCE
    sizes = enumerate(value.shape)
    return [size if isinstance(size, int) else batch if axis == 0 else free for axis, size in sizes]


def first_rows(weights: ExportedWeights) -> dict[str, NDArray[np.float32]]:
    """The first rows of every packed matrix, for `nearest`."""
    return {name: weights.dequantized(name)[:_SAMPLE_ROWS] for name in weights.packed}


def _constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Float matrices among the initializers."""
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) == 2 and tensor.dtype.is_floating_point():
            yield value, tensor


def nearest(
    matrix: NDArray[Any], weights: ExportedWeights, heads: dict[str, NDArray[np.float32]]
) -> tuple[str, NDArray[np.float32]] | None:
    """The packed matrix whose first rows are nearest to those of `matrix`, and its values, turned alike."""
    near = _alike(matrix, weights, heads)
    return (near[0].name, _values(weights, near[0])) if near else None


class _Match(NamedTuple):
    """A packed matrix that resembles a constant, as it is or turned."""

    distance: float
    name: str
    turned: bool


def _alike(
    matrix: NDArray[Any], weights: ExportedWeights, heads: dict[str, NDArray[np.float32]]
) -> list[_Match]:
    """Every packed matrix that resembles a constant, the nearest first."""
    found = []
    for name, packed in weights.packed.items():
        for turned in (False, True):
            straight = matrix.T if turned else matrix
            if straight.shape == (packed.rows, packed.inputs):
                distance = _distance(straight[:_SAMPLE_ROWS], heads[name])
                found.append(_Match(distance, name, turned))
    return sorted(match for match in found if match.distance < _NEAR)


def _values(weights: ExportedWeights, match: _Match) -> NDArray[np.float32]:
    """The dequantized values of a match, turned as the constant is."""
    values = weights.dequantized(match.name)
    return np.ascontiguousarray(values.T if match.turned else values)


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    return parity.relative_rms(one.astype(np.float64) - other, one)


def _rows(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs that hold real numbers, with at least one axis."""
    return [np.atleast_1d(output) for output in outputs if np.issubdtype(output.dtype, np.floating)]
