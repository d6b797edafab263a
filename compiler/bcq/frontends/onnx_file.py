# SPDX-License-Identifier: Apache-2.0
"""An existing ``.onnx`` file, whoever made it, as a graph whose weights stay on disk until they are read.

The file may come from anyone, so everything that points outside it is checked before a byte is read: external
data lies in regular files of the model's own folder (`bcq.files.inside`) and is as long as its tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no stubs

from bcq.checks.external import MAX_DEPTH, ExternalTensor, check_places, no_model
from bcq.errors import BcqError, InputError, UnsupportedError

_TYPED_DATA = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_COPY_HINT = "Copy the model again, with its data file beside it."


def load(path: Path | str) -> ir.Model:
    """Reads a model; external data is mapped when a tensor is first read.

    Args:
        path: an ``.onnx`` file.

    Raises:
        InputError: E101 when the file or its data is missing, E103 when either is cut short or not a model,
            E108 when external data points somewhere that it must not.
        UnsupportedError: E401 for sparse initializers.
    """
    path = Path(path)
    proto = _read(path)
    tensors = list(_tensors(proto.graph, path))
    for tensor in tensors:
        _check_tensor(tensor, path)
    outside = [tensor for tensor in tensors if _is_external(tensor)]
    check_places((_external(tensor, path) for tensor in outside), path)
    if proto.graph.sparse_initializer:
        raise UnsupportedError(
            "E401", f"'{path}' has sparse initializers; only dense ones are read.", "Make them dense."
        )
    for function in proto.functions:
        for tensor in _node_tensors(function.node, path):
            _check_tensor(tensor, path)
            if _is_external(tensor):
                raise InputError(
                    "E103", f"function '{function.name}' of '{path}' keeps external data.", "Export it again."
                )
    _resolve(outside, path.parent)
    try:
        return ir.from_proto(proto)
    except Exception as fault:  # onnx_ir raises its own and builtin errors, none of them documented
        raise InputError(
            "E103", f"'{path}' is not a valid model: {_first_line(fault)}", _COPY_HINT
        ) from fault


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a failure on a graph that ONNX itself calls invalid into E103 with ONNX's reason.

    The checker runs only then: it is slow on large models.
    """
    try:
        yield
    except (BcqError, OSError, MemoryError):
        raise
    except Exception as fault:
        try:
            onnx.checker.check_model(str(path))
        except Exception as reason:  # the checker's own errors have no common class
            raise InputError(
                "E103", f"'{path}' is not a valid model: {_first_line(reason)[:300]}", "Export it again."
            ) from fault
        raise


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise InputError("E101", f"'{path}' does not exist or is no file.", "Check the path.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError) as fault:
        raise no_model(path) from fault
    if proto.ir_version < 1 or not (proto.graph.node or proto.graph.output):
        raise InputError("E103", f"'{path}' is not an ONNX model: it has no graph.", _COPY_HINT)
    return proto


def _tensors(graph: onnx.GraphProto, path: Path, depth: int = 0) -> Iterator[onnx.TensorProto]:
    """All tensors of a graph: initializers, sparse ones, attributes of nodes, and those of nested graphs."""
    if depth > MAX_DEPTH:
        raise InputError("E103", f"'{path}' nests graphs more than {MAX_DEPTH} deep.", "Export it again.")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node, path, depth)


def _node_tensors(nodes: Iterable[onnx.NodeProto], path: Path, depth: int = 0) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g, path, depth + 1)
            for graph in attribute.graphs:
                yield from _tensors(graph, path, depth + 1)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    expected = _byte_count(tensor, path)
    if _is_external(tensor):
        return
    got = _stored_bytes(tensor)
    if expected is not None and got is not None and got != expected:
        raise InputError(
            "E103",
            f"tensor '{tensor.name}' of '{path}' has {got} bytes, "
            f"its shape {list(tensor.dims)} needs {expected}.",
            _COPY_HINT,
        )


def _stored_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes inside the model file; None for the fields whose packing onnx_ir checks itself."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    if tensor.data_type == onnx.TensorProto.FLOAT:
        return 4 * len(tensor.float_data)
    if tensor.data_type == onnx.TensorProto.DOUBLE:
        return 8 * len(tensor.double_data)
    return None if any(len(getattr(tensor, name)) for name in _TYPED_DATA) else 0


def _byte_count(tensor: onnx.TensorProto, path: Path) -> int | None:
    """Bytes that type and shape ask for; None for strings."""
    if any(size < 0 for size in tensor.dims):
        raise InputError(
            "E103", f"tensor '{tensor.name}' of '{path}' has the shape {list(tensor.dims)}.", _COPY_HINT
        )
    try:
        dtype = ir.DataType(tensor.data_type)
        bits = 0 if dtype == ir.DataType.STRING else dtype.bitwidth
    except (TypeError, ValueError) as fault:
        raise InputError(
            "E103", f"tensor '{tensor.name}' of '{path}' has the unknown type {tensor.data_type}.", _COPY_HINT
        ) from fault
    count = 1
    for size in tensor.dims:
        count *= size
    return -(-count * bits // 8) if bits else None


def _external(tensor: onnx.TensorProto, path: Path) -> ExternalTensor:
    """Where its bytes lie, the length filled in and equal to what type and shape ask for."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    who = f"tensor '{tensor.name}' of '{path}'"
    if len(fields) < len(tensor.external_data):
        raise InputError("E103", f"{who} says where its data is twice.", "Export it again.")
    expected = _byte_count(tensor, path)
    if expected is None:
        raise InputError("E103", f"{who} keeps strings as external data.", "Export it again.")
    if fields.setdefault("length", str(expected)) != str(expected):
        raise InputError(
            "E103", f"{who} says {fields['length'][:40]!r} bytes, its shape needs {expected}.", _COPY_HINT
        )
    return ExternalTensor(tensor.name, fields)


def _resolve(tensors: Iterable[onnx.TensorProto], folder: Path) -> None:
    """Replaces locations, all of them checked, by full paths: onnx_ir has other rules for relative ones."""
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str((folder / entry.value).resolve())


def _first_line(fault: Exception) -> str:
    return next(iter(str(fault).splitlines()), type(fault).__name__)
