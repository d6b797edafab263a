# SPDX-License-Identifier: Apache-2.0
"""An existing ``.onnx`` file, whoever made it, as a graph whose weights stay on disk until they are read.

The file may come from anyone, so everything that points outside it is checked before a byte is read: external
data lies in regular files of the model's own folder, reached by a relative path without a symlink that leaves
the folder and without a second hard link, and is as long as its tensor.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no stubs

from bcq.errors import BcqError, InputError, UnsupportedError

_MAX_DEPTH = 32  # nested branch and loop bodies; real models have one or two
_MAX_DIGITS = 19  # of a byte offset or length in 64 bits
_TYPED_DATA = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_COPY_HINT = "Copy the model again, with its data file beside it."
_UNSAFE_HINT = "Only use models from people you trust; save the model again with its data in its own folder."


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
    for tensor in _tensors(proto.graph, path):
        _check_tensor(tensor, path)
    if proto.graph.sparse_initializer:
        raise UnsupportedError(
            "E401", f"'{path}' has sparse initializers; only dense ones are read.", "Make them dense."
        )
    for function in proto.functions:
        for tensor in _node_tensors(function.node, path):
            _check_tensor(tensor, path)
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise InputError(
                    "E103", f"function '{function.name}' of '{path}' keeps external data.", "Export it again."
                )
    try:
        model = ir.from_proto(proto)
    except Exception as fault:  # onnx_ir raises its own and builtin errors, none of them documented
        raise InputError(
            "E103", f"'{path}' is not a valid model: {_first_line(fault)}", _COPY_HINT
        ) from fault
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    return model


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
        raise InputError("E103", f"'{path}' is cut short or not an ONNX file.", _COPY_HINT) from fault
    if proto.ir_version < 1 or not (proto.graph.node or proto.graph.output):
        raise InputError("E103", f"'{path}' is not an ONNX model: it has no graph.", _COPY_HINT)
    return proto


def _tensors(graph: onnx.GraphProto, path: Path, depth: int = 0) -> Iterator[onnx.TensorProto]:
    """All tensors of a graph: initializers, sparse ones, attributes of nodes, and those of nested graphs."""
    if depth > _MAX_DEPTH:
        raise InputError("E103", f"'{path}' nests graphs more than {_MAX_DEPTH} deep.", "Export it again.")
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


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    expected = _byte_count(tensor, path)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, path, expected)
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


def _check_external(tensor: onnx.TensorProto, path: Path, expected: int | None) -> None:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    who = f"tensor '{tensor.name}' of '{path}'"
    data = _safe_path(fields.get("location", ""), path.parent, who)
    offset = _number(fields.get("offset", "0"), "offset", who)
    size = data.stat().st_size
    if expected is None:
        raise InputError("E103", f"{who} keeps strings as external data.", "Export it again.")
    length = _number(fields.get("length", str(expected)), "length", who)
    if length != expected:
        raise InputError("E103", f"{who} says {length} bytes, its shape needs {expected}.", _COPY_HINT)
    if offset + length > size:
        raise InputError(
            "E103",
            f"'{data}' is cut short: {who} needs bytes up to {offset + length:,}, the file has {size:,}.",
            _COPY_HINT,
        )


def _number(text: str, what: str, who: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InputError("E103", f"{who} has the {what} {text!r}, expected a number.", "Export it again.")
    return int(text)


def _safe_path(location: str, folder: Path, who: str) -> Path:
    """The data file, when it is a regular file inside ``folder`` that has no other name."""
    relative = PurePosixPath(location)
    absolute = relative.is_absolute() or bool(PureWindowsPath(location).drive) or location.startswith("\\")
    if not location or absolute or ".." in relative.parts or "\\" in location or "\0" in location:
        raise InputError(
            "E108",
            f"{who} has its data at {location!r}, expected a relative path without '..'.",
            _UNSAFE_HINT,
        )
    data = folder / relative
    real, home = os.path.realpath(data), os.path.realpath(folder)
    if os.path.commonpath([real, home]) != home:
        raise InputError(
            "E108", f"{who} has its data at '{location}', a link that leaves the folder.", _UNSAFE_HINT
        )
    try:
        status = Path(real).stat()
    except OSError as fault:
        raise InputError("E101", f"'{data}' is missing: {who} has its data there.", _COPY_HINT) from fault
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            "E108", f"{who} has its data at '{location}', which is no regular file.", _UNSAFE_HINT
        )
    if status.st_nlink > 1:
        raise InputError(
            "E108",
            f"{who} has its data at '{location}', a file with {status.st_nlink} hard links.",
            _UNSAFE_HINT,
        )
    return data


def _first_line(fault: Exception) -> str:
    return next(iter(str(fault).splitlines()), type(fault).__name__)
