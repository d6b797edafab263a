# SPDX-License-Identifier: Apache-2.0
"""Writes a model with its weights beside it: aligned so that a runtime maps them, streamed, atomic."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

import onnx_ir as ir

from bcq.errors import ResourceError, is_out_of_memory, out_of_memory
from bcq.files.atomic import sync

ALIGNMENT = 4096  # a page: mapped without a copy by any runtime (ops/README.md asks for it)
FURTHER_ALIGNMENT = 64  # the least that it allows: for small factors that only further models read
MIN_EXTERNAL_BYTES = 1024  # smaller tensors stay inside the model file
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the data file, in bytes."""

    offset: int
    length: int


def write_model(model: ir.Model, path: Path, data_name: str | None = None) -> None:
    """Writes ``path`` and, beside it, one data file with every tensor of ``MIN_EXTERNAL_BYTES`` or more.

    The data file is complete on the disk before the model file that names it appears. Its default name has
    a hash of the content when ``<name>.data`` exists already, so that a model that is replaced in place stays
    loadable until its successor is whole. The same model gives the same bytes. ``model`` is not changed.

    Args:
        model: the model; tensors are read one at a time.
        path: the model file to write; its folder exists.
        data_name: its name; None for ``<name>.data``, or ``<stem>-<hash>.onnx.data`` where that exists.

    Raises:
        ResourceError: E601 when the disk is full or the folder cannot be written.
    """
    write_models({path: model}, data_name)


def write_models(models: Mapping[Path, ir.Model], data_name: str | None = None) -> None:
    """Writes models of one folder, as :func:`write_model`, beside one data file that has equal tensors once.

    Args:
        models: by the file to write; the data file has the name of the first.
        data_name: as for :func:`write_model`.

    Raises:
        ResourceError: E601 when the disk is full or the folder cannot be written.
    """
    path = next(iter(models))
    try:
        with _temporary(path.parent) as data:
            places, digest = _write_tensors(list(models.values()), data)
            name = data_name or _data_name(path, digest)
            with ExitStack() as files:
                made = [
                    (target, _written(model, places, name, files.enter_context(_temporary(path.parent))))
                    for target, model in models.items()
                ]
                if places:
                    Path(data.name).replace(path.with_name(name))
                for target, file in made:
                    file.replace(target)
        sync(path.parent)  # makes the renames durable
    except OSError as fault:
        if is_out_of_memory(fault):
            raise out_of_memory(f"while '{path}' was written") from fault
        raise ResourceError(
            "E601",
            f"cannot write '{path}': {fault.strerror or fault}.",
            "Free some space or choose another folder; what was there before is unchanged.",
        ) from fault


def _written(model: ir.Model, places: dict[int, _Place], data_name: str, file: BufferedWriter) -> Path:
    """The model's graph in a temporary file."""
    copy = model.clone()
    _replace_tensors(copy, model, places, data_name)
    file.write(ir.to_proto(copy).SerializeToString(deterministic=True))
    _sync(file)
    return Path(file.name)


def _data_name(path: Path, digest: str) -> str:
    plain = f"{path.name}.data"
    return f"{path.stem}-{digest[:12]}{path.suffix}.data" if path.with_name(plain).exists() else plain


def _write_tensors(models: list[ir.Model], file: BufferedWriter) -> tuple[dict[int, _Place], str]:
    """Streams every large tensor, each from an aligned offset; returns places and the hash of the file."""
    sink = _HashingFile(file)
    places: dict[int, _Place] = {}
    known: dict[str, _Place] = {}  # by content, where several models may hold the same
    pairs = [(model, value) for model in models for value in _initializers(model)]
    for model, value in pairs:
        tensor = value.const_value
        if tensor is None or id(tensor) in places or not _goes_outside(tensor):
            continue
        content = _content(tensor) if len(models) > 1 else ""
        if content in known:
            places[id(tensor)] = known[content]
            continue
        sink.pad_to(ALIGNMENT if model is models[0] or _is_codes(tensor) else FURTHER_ALIGNMENT)
        start = sink.position
        _write_tensor(tensor, sink)
        places[id(tensor)] = _Place(start, sink.position - start)
        if content:
            known[content] = places[id(tensor)]
    _sync(file)
    return places, sink.digest.hexdigest()


def _is_codes(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype == ir.DataType.UINT32  # nothing else of a model is


def _content(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of a tensor's bytes."""
    digest = _HashingFile(None)
    _write_tensor(tensor, digest)
    return digest.digest.hexdigest()


def _write_tensor(tensor: ir.TensorProtocol, sink: _HashingFile) -> None:
    """Little-endian bytes; a tensor that can stream itself is never whole in memory."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(sink)
    else:
        sink.write(tensor.tobytes())


class _HashingFile:
    """A file opened for writing, or none, that knows how far it is and what it holds."""

    def __init__(self, file: BufferedWriter | None) -> None:
        self._file = file
        self.position = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _BLOCK_BYTES):
            block = view[start : start + _BLOCK_BYTES]
            if self._file is not None:
                self._file.write(block)
            self.digest.update(block)
        self.position += len(view)
        return len(view)

    def pad_to(self, alignment: int) -> None:
        """Zero bytes up to the next multiple of ``alignment``."""
        self.write(bytes(-self.position % alignment))


def _goes_outside(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= MIN_EXTERNAL_BYTES


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _replace_tensors(copy: ir.Model, model: ir.Model, places: dict[int, _Place], location: str) -> None:
    """Gives the copy's initializers tensors of their own: pointers into the data file, or small copies."""
    for target, original in zip(_initializers(copy), _initializers(model), strict=True):
        tensor, name = original.const_value, original.name
        if tensor is None or name is None:
            continue
        place = places.get(id(tensor))
        if place is not None:
            target.const_value = ir.ExternalTensor(
                location,
                place.offset,
                place.length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
            )
        elif tensor.dtype == ir.DataType.STRING:
            target.const_value = ir.StringTensor(
                tensor.numpy(), shape=ir.Shape(tensor.shape.numpy()), name=name
            )
        else:
            target.const_value = ir.Tensor(
                tensor.numpy(), dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )


@contextmanager
def _temporary(folder: Path) -> Iterator[BufferedWriter]:
    """A new file in ``folder`` that vanishes at the end unless it was renamed."""
    path = folder / f".bcq-{secrets.token_hex(8)}.tmp"
    try:
        with path.open("xb") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


def _sync(file: BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())
