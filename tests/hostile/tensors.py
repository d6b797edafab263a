# SPDX-License-Identifier: Apache-2.0
"""Constant inputs of the wrong shape, type, size or kind; missing, extra, and with bits in the padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bcq import contract
from hostile.case import Case, Mutation
from hostile.subjects import OPSET, Array, Subject

FAMILY = "tensors"
OTHER_TYPES = {
    "double": np.float64,
    "int32": np.int32,
    "int16": np.int16,
    "bool": np.bool_,
    "float32": np.float32,
    "uint32": np.uint32,
}


def initializer(model: onnx.ModelProto, name: str) -> TensorProto:
    """The constant of that name."""
    found: TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def replace(name: str, value: Array) -> Mutation:
    """Another array under the same name."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        initializer(model, name).CopyFrom(numpy_helper.from_array(value, name))

    return mutate


def _change(name: str, change: Any) -> Mutation:
    return lambda model, folder: change(initializer(model, name))


def _shapes(value: Array) -> Iterator[tuple[int, ...]]:
    yield from ((), (0,), (value.size,), (1, *value.shape), (1,) * 9)
    for axis, size in enumerate(value.shape):
        for other in (0, size - 1, size + 1):
            yield (*value.shape[:axis], other, *value.shape[axis + 1 :])


def _wrong_shapes(subject: Subject, name: str) -> Iterator[Case]:
    value = subject.tensors[name]
    valid = {value.shape, (0,) if name == "offset" else value.shape}
    # MatMulNBits also documents flat scales and zero points.
    for shape in dict.fromkeys(_shapes(value)):
        other = np.zeros(shape, value.dtype)
        case = f"{name} {list(shape)}"
        if _holds_more_planes(subject, name, shape):
            yield Case(subject, FAMILY, case, replace(name, other), legal=True, tensors={name: other})
        elif shape not in valid:
            yield Case(subject, FAMILY, case, replace(name, other), (name,))
    for what, dims in (
        ("wraps", [2**32, 2**32]),
        ("huge", [2**40]),
        ("negative", [-1]),
        ("product", [2**62, 4, 4]),
    ):
        change = _change(
            name, lambda tensor, dims=dims: (tensor.ClearField("dims"), tensor.dims.extend(dims))
        )
        yield Case(subject, FAMILY, f"{name} {what}", change, (name,), places=(name,))


def _holds_more_planes(subject: Subject, name: str, shape: tuple[int, ...]) -> bool:
    """Codes of format version 2 may hold any number of planes that are not read."""
    if name != "codes" or subject.attributes["format_version"] != contract.NESTED_FORMAT_VERSION:
        return False
    tiles, chunks, _, rows = subject.tensors["codes"].shape
    return any(shape == (tiles, chunks, more, rows) for more in range(subject.attributes["bits"] + 1, 9))


def _wrong_content(subject: Subject, name: str) -> Iterator[Case]:
    size = subject.tensors[name].itemsize
    changes = {
        "short": lambda tensor: setattr(tensor, "raw_data", tensor.raw_data[:-size]),
        "half an element short": lambda tensor: setattr(tensor, "raw_data", tensor.raw_data[:-1]),
        "long": lambda tensor: setattr(tensor, "raw_data", tensor.raw_data + bytes(size)),
        "without data": lambda tensor: tensor.ClearField("raw_data"),
        "in two fields": lambda tensor: tensor.float_data.append(1.0),
        "undefined": lambda tensor: setattr(tensor, "data_type", 0),
        "unknown type": lambda tensor: setattr(tensor, "data_type", 999),
        "text": lambda tensor: setattr(tensor, "data_type", TensorProto.STRING),
        "bfloat16": lambda tensor: setattr(tensor, "data_type", TensorProto.BFLOAT16),
        "a segment": lambda tensor: tensor.segment.CopyFrom(TensorProto.Segment(begin=1, end=2)),
    }
    for what, change in changes.items():
        if what == "a segment":  # ONNX Runtime ignores the field, and the data are whole
            yield Case(subject, FAMILY, f"{name} {what}", _change(name, change), legal=True)
        else:
            yield Case(subject, FAMILY, f"{name} {what}", _change(name, change), (name,), places=(name,))
    for what, dtype in OTHER_TYPES.items():
        if dtype != subject.tensors[name].dtype:
            wrong = replace(name, subject.tensors[name].astype(dtype))
            yield Case(subject, FAMILY, f"{name} {what}", wrong, (name, "type"))


def _absent(name: str) -> Mutation:
    return lambda model, folder: model.graph.initializer.remove(initializer(model, name))


def _unbound(name: str) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        node = model.graph.node[0]
        node.input[list(node.input).index(name)] = ""
        _absent(name)(model, folder)

    return mutate


def _cut(name: str) -> Mutation:
    """The node ends before this input."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        node = model.graph.node[0]
        del node.input[list(node.input).index(name) :]

    return mutate


def _fed(subject: Subject, name: str) -> Mutation:
    """A graph input without a default takes the place of the constant."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        _absent(name)(model, folder)
        kind = helper.np_dtype_to_tensor_dtype(subject.tensors[name].dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, None))

    return mutate


def _overridable(name: str) -> Mutation:
    """The constant is also a graph input: a caller may replace it."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        tensor = initializer(model, name)
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))

    return mutate


def _sparse(name: str, harm: Callable[[Array], Array] | None = None) -> Mutation:
    """The same values as a sparse initializer, with indices that may be harmful."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        dense = numpy_helper.to_array(initializer(model, name)).reshape(-1)
        dims = list(initializer(model, name).dims)
        _absent(name)(model, folder)
        at = np.flatnonzero(dense)
        values = numpy_helper.from_array(dense[at], name)
        indices = numpy_helper.from_array(at if harm is None else harm(at), f"{name} at")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dims))

    return mutate


SPARSE_HARM: dict[str, Callable[[Array], Array]] = {
    "past the end": lambda at: at + 10**6,
    "far past the end": lambda at: at + 2**62,
    "negative": lambda at: at - 5,
    "one missing": lambda at: at[:-1],
    "of rank 2": lambda at: np.stack([at, at], axis=1),
}


def _twice(name: str) -> Mutation:
    return lambda model, folder: model.graph.initializer.append(initializer(model, name))


def _extra(model: onnx.ModelProto, folder: Path) -> None:
    names = list(model.graph.node[0].input)
    model.graph.node[0].input.extend([names[1]] * 8)


def _as_constant_node(name: str) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        tensor = TensorProto()
        tensor.CopyFrom(initializer(model, name))
        _absent(name)(model, folder)
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))

    return mutate


def _swapped(one: str, other: str) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        names = model.graph.node[0].input
        i, j = list(names).index(one), list(names).index(other)
        names[i], names[j] = other, one

    return mutate


def _wrong_kind(subject: Subject, name: str) -> Iterator[Case]:
    optional = subject.op == "MatMulNBits" and name == "zero_points"
    for what, mutate in (("missing", _absent(name)), ("unbound", _unbound(name)), ("cut off", _cut(name))):
        if not optional or what == "missing":
            yield Case(subject, FAMILY, f"{name} {what}", mutate, (name, "input"))
    # ONNX Runtime makes a sparse constant dense before an operator sees it.
    yield Case(subject, FAMILY, f"{name} sparse", _sparse(name), legal=True)
    for what, harm in SPARSE_HARM.items():
        yield Case(subject, FAMILY, f"{name} sparse, {what}", _sparse(name, harm), (name,), places=(name,))
    yield Case(subject, FAMILY, f"{name} twice", _twice(name), (name,), places=(name,))
    yield Case(subject, FAMILY, f"{name} from a Constant", _as_constant_node(name), legal=True)
    if name == "codes":
        yield Case(subject, FAMILY, f"{name} fed", _fed(subject, name), ("codes",))
        yield Case(subject, FAMILY, f"{name} overridable", _overridable(name), ("codes",))
    elif subject.domain == "bcq":
        yield Case(subject, FAMILY, f"{name} overridable", _overridable(name), legal=True)


def _padding(subject: Subject) -> Iterator[Case]:
    codes = subject.tensors["codes"]
    for where in ((3, 0, 0, 2), (3, 3, 2, 15), (0, 3, 0, 0), (2, 3, 2, 7)):
        dirty = codes.copy()
        dirty[where] |= np.uint32(1 << 31)
        yield Case(subject, FAMILY, f"padding bit {where}", replace("codes", dirty), ("codes padding",))
    for name in ("alpha_1", "alpha_rest", "offset"):
        # Scaling factors of rows that do not exist change no output, whatever they are.
        padded = subject.tensors[name].copy()
        padded[-1, ..., 2:] = np.nan
        yield Case(subject, FAMILY, f"{name} NaN in padding", replace(name, padded), legal=True)


def _computed_codes(model: onnx.ModelProto, folder: Path) -> None:
    """Codes that only exist at run time: cast from a graph input."""
    tensor = initializer(model, "codes")
    model.graph.input.append(helper.make_tensor_value_info("raw", TensorProto.INT64, list(tensor.dims)))
    _absent("codes")(model, folder)
    model.graph.node.insert(0, helper.make_node("Cast", ["raw"], ["codes"], to=TensorProto.UINT32))


def cases(subject: Subject) -> Iterator[Case]:
    """All tensor mutations of an operator."""
    assert OPSET >= 13, "sparse initializers and Constant as they are used here"
    for name in subject.tensors:
        yield from _wrong_shapes(subject, name)
        yield from _wrong_content(subject, name)
        yield from _wrong_kind(subject, name)
    yield Case(subject, FAMILY, "inputs too many", _extra, ("input",))
    names = list(subject.tensors)
    yield Case(subject, FAMILY, "inputs swapped", _swapped(names[0], names[1]), (*names, "type"))
    if subject.domain == "bcq":
        yield from _padding(subject)
        yield Case(subject, FAMILY, "codes computed", _computed_codes, ("codes",))
