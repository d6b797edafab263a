# SPDX-License-Identifier: Apache-2.0
"""Parity of an export of an ``.onnx`` file: onnxruntime runs the original graph with dequantized weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bcq import parity
from bcq.errors import InputError
from bcq.exported import MODEL_FILE, ExportedWeights
from bcq.parity import ParityResult
from bcq.progress import Progress
from bcq.runtime import session

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
    feeds = random_feeds(running, weights)
    got = running.run(None, feeds)
    progress.step("onnxruntime with the library")
    allowed = parity.tolerance(weights)
    if against is None:
        expected = session(folder, with_library=False).run(None, feeds)
        progress.step("onnxruntime with the functions in standard operators")
        progress.done()
        return parity.compare(_rows(got), _rows(expected), allowed)
    expected = run_dense(against, weights, feeds)
    progress.step("onnxruntime on the original graph, dequantized weights")
    original = session(against, with_library=False).run(None, feeds)
    progress.step("onnxruntime on the original graph")
    progress.done()
    result = parity.compare(_rows(got), _rows(expected), allowed)
    return replace(result, original=parity.against_original(_rows(got), _rows(original)))


def run_dense(path: Path, weights: ExportedWeights, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Runs the original graph after each matrix took the values that its packed form stands for.

    Raises:
        InputError: E109 when a packed matrix resembles no constant of the original.
    """
    from bcq.frontends import onnx_file
    from bcq.write import write_model

    model = onnx_file.load(path)
    substitute(model, weights)
    with tempfile.TemporaryDirectory(prefix="bcq-") as folder:
        write_model(model, Path(folder) / MODEL_FILE)
        return list(session(folder, with_library=False).run(None, feeds))


def substitute(model: ir.Model, weights: ExportedWeights) -> None:
    """Gives every constant of `model` that was packed its dequantized values, found by nearness, not by name.

    An exporter may have folded a transposition into a constant and lost its name; both directions are tried.
    """
    left = set(weights.packed)
    heads = first_rows(weights)
    for constant, tensor in _constants(model):
        found = nearest(tensor.numpy(), weights, heads)
        if found is not None:
            name, values = found
            left.discard(name)
            constant.const_value = ir.Tensor(values.astype(tensor.dtype.numpy()), name=constant.name)
    if left:
        raise InputError(
            "E109",
            f"packed matrix '{min(left)}' resembles no matrix of the original.",
            "Give the file that the export was made from.",
        )


def random_feeds(running: Any, weights: ExportedWeights) -> dict[str, NDArray[Any]]:
    """Seeded inputs for any graph: tokens within the vocabulary, masks of ones, positions in order."""
    inputs = running.get_inputs()
    past = _PAST if any("past" in value.name for value in inputs) else 0
    random = np.random.default_rng(0)
    return {value.name: _feed(value, past, weights, random) for value in inputs}


def _feed(value: Any, past: int, weights: ExportedWeights, random: np.random.Generator) -> NDArray[Any]:
    dtype = _TYPES.get(value.type)
    if dtype is None:
        raise InputError("E102", f"input '{value.name}': got type {value.type}, expected numbers.")
    shape = _shape(value, past)
    if "mask" in value.name:
        return np.ones(shape, dtype)
    if "position" in value.name:
        return np.broadcast_to(np.arange(past, past + shape[-1]), shape).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        return random.integers(0, weights.gather_rows.get(value.name, 1), shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def _shape(value: Any, past: int) -> list[int]:
    """Fixed sizes as they are; a free first axis is the batch, others past (of a cache) or sequence."""
    free = _SEQUENCE
    if "past" in value.name:
        free = past
    elif "mask" in value.name:
        free = past + _SEQUENCE
    sizes = enumerate(value.shape)
    return [size if isinstance(size, int) else _BATCH if axis == 0 else free for axis, size in sizes]


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
    best, name, turned = _NEAR, "", False
    for candidate, packed in weights.packed.items():
        for flipped in (False, True):
            straight = matrix.T if flipped else matrix
            if straight.shape != (packed.rows, packed.inputs):
                continue
            distance = _distance(straight[:_SAMPLE_ROWS], heads[candidate])
            if distance < best:
                best, name, turned = distance, candidate, flipped
    if not name:
        return None
    values = weights.dequantized(name)
    return name, np.ascontiguousarray(values.T if turned else values)


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    return parity.relative_rms(one.astype(np.float64) - other, one)


def _rows(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs that hold real numbers, with at least one axis."""
    return [np.atleast_1d(output) for output in outputs if np.issubdtype(output.dtype, np.floating)]
