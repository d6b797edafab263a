# SPDX-License-Identifier: Apache-2.0
"""Sizes of a graph's values as numbers and symbols, and what integer tensors of sizes hold.

Exporters compute the shape of every Reshape anew from the graph's inputs. To see that two such computations
are one, or that a Reshape changes nothing, sizes are followed symbolically: a named dimension of a graph
input is a symbol, and equal names mean equal sizes, as ONNX says. Shapes that the file notes for inner values
are not used: exporters get them wrong. What is not known gets a symbol of its own, which equals nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from bcq import contract

Dim = int | str  # a size, or a symbol for one
Dims = tuple[Dim, ...]
LARGEST = 16  # elements of a tensor that is read as sizes
ENDLESS = 2**31 - 1  # an end of a Slice that means the end

_SAME = frozenset(
    {
        *("Cast", "Identity", "Relu", "Gelu", "Tanh", "Sigmoid", "Erf", "Neg", "Abs", "Sqrt", "Exp", "Log"),
        *("Reciprocal", "Cos", "Sin", "IsNaN", "Not", "Softmax", "LayerNormalization", "CumSum", "Clip"),
    }
)
_BROADCAST = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Where", "Max", "Min", "Sum"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    }
)


class Sizes:
    """Shapes and contents of the main graph's values, as far as they follow from its inputs.

    Args:
        model: any model; functions and subgraphs are not entered.
    """

    def __init__(self, model: ir.Model) -> None:
        self._shapes: dict[ir.Value, Dims] = {}
        self._contents: dict[ir.Value, Dims] = {}
        for value in model.graph.inputs:
            if value.shape is not None:
                self._shapes[value] = tuple(_symbol(value, axis, dim) for axis, dim in enumerate(value.shape))
        for value in model.graph.initializers.values():
            if not value.is_graph_input() and value.const_value is not None:
                self._constant(value, value.const_value)
        for node in model.graph:
            self._follow(node)

    def shape(self, value: ir.Value | None) -> Dims | None:
        """The sizes of a value; None when even its rank is not known."""
        return None if value is None else self._shapes.get(value)

    def content(self, value: ir.Value | None) -> Dims | None:
        """The elements of an int64 tensor of rank 0 or 1; None when they are not known."""
        return None if value is None else self._contents.get(value)

    def numbers(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The elements where all of them are numbers."""
        content = self.content(value)
        if content is None or not all(isinstance(dim, int) for dim in content):
            return None
        return tuple(int(dim) for dim in content)

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        self._shapes[value] = tuple(tensor.shape.numpy())
        if tensor.dtype == ir.DataType.INT64 and tensor.size <= LARGEST and len(tensor.shape) <= 1:
            self._contents[value] = tuple(int(number) for number in np.atleast_1d(tensor.numpy()))

    def _follow(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and node.domain == "":
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                self._constant(node.outputs[0], tensor)
            return
        shapes = self._result_shapes(node)
        for output, shape in zip(node.outputs, shapes, strict=False):
            if shape is not None:
                self._shapes[output] = shape
        content = self._result_content(node)
        if content is not None:
            self._contents[node.outputs[0]] = content

    def _result_shapes(self, node: ir.Node) -> Sequence[Dims | None]:
        shapes = [self.shape(value) for value in node.inputs]
        if node.domain == contract.DOMAIN:
            return [_bcq(node, shapes[0])]
        if node.domain == "com.microsoft":
            return _contrib(node, shapes)
        if node.domain != "" or not shapes:
            return []
        if node.op_type in _SAME:
            return [shapes[0]]
        if node.op_type in _BROADCAST:
            return [broadcast(shapes, node.outputs[0])]
        rule = _RULES.get(node.op_type)
        return [] if rule is None or shapes[0] is None else rule(self, node, shapes[0])

    def _result_content(self, node: ir.Node) -> Dims | None:
        """What a node that computes sizes gives; only small integer tensors are followed."""
        if node.domain != "":
            return None
        rule = _CONTENT_RULES.get(node.op_type)
        return None if rule is None else rule(self, node)


def _symbol(value: ir.Value, axis: int, dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        return dim
    return dim.value or f"?{value.name}.{axis}"


def unknown(value: ir.Value, axis: int) -> str:
    """A symbol that no other size has."""
    return f"?{value.name}.{axis}"


def noted(dims: Dims) -> ir.Shape:
    """A shape as a file notes it: sizes that have no name of their own are left open."""
    return ir.Shape([None if isinstance(dim, str) and dim[0] in "?(" else dim for dim in dims])


def broadcast(shapes: Sequence[Dims | None], result: ir.Value) -> Dims | None:
    """The shape of an elementwise result."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known))
    padded = [(1,) * (rank - len(shape)) + shape for shape in known]
    columns = enumerate(zip(*padded, strict=True))
    return tuple(_common(set(column), unknown(result, axis)) for axis, column in columns)


def _common(dims: set[Dim], otherwise: str) -> Dim:
    """Sizes along one axis: a number above 1 wins, for the others must then be that number or 1."""
    dims = dims - {1}
    if len(dims) <= 1:
        return next(iter(dims), 1)
    return next((dim for dim in dims if isinstance(dim, int)), otherwise)


def total(dims: Sequence[Dim]) -> Dim:
    """The sum of sizes; equal terms in any order give the same symbol."""
    number = sum(dim for dim in dims if isinstance(dim, int))
    symbols = sorted(dim for dim in dims if isinstance(dim, str))
    if not symbols:
        return number
    terms = [*symbols, *([str(number)] if number else [])]
    return terms[0] if len(terms) == 1 else "(" + ")+(".join(terms) + ")"


def difference(whole: Dim, part: Dim) -> Dim:
    """A size less another one; the name of a difference that is no number says which."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole - part
    return f"({whole})-({part})"


def reshaped(shape: Dims, target: Dims, allow_zero: bool, result: ir.Value) -> Dims | None:
    """The shape that a Reshape gives."""
    dims: list[Dim] = list(target)
    for axis, dim in enumerate(dims):
        if dim == 0 and not allow_zero:
            if axis >= len(shape):
                return None
            dims[axis] = shape[axis]
    if -1 in dims:
        axis = dims.index(-1)
        dims[axis] = _quotient(shape, dims[:axis] + dims[axis + 1 :], unknown(result, axis))
    return tuple(dims)


def _quotient(whole: Sequence[Dim], parts: Sequence[Dim], otherwise: str) -> Dim:
    """The size that, times `parts`, gives the product of `whole`."""
    left = list(whole)
    above = below = 1
    for dim in parts:
        if dim in left:
            left.remove(dim)
        elif isinstance(dim, int):
            below *= dim
        else:
            return otherwise
    symbols = [dim for dim in left if isinstance(dim, str)]
    above = int(np.prod([dim for dim in left if isinstance(dim, int)], dtype=np.int64))
    if below == 0 or above % below:
        return otherwise
    if not symbols:
        return above // below
    return symbols[0] if len(symbols) == 1 and above == below else otherwise


def _bcq(node: ir.Node, first: Dims | None) -> Dims | None:
    if first is None:
        return None
    if node.op_type == contract.MATMUL.name:
        return (*first[:-1], node.attributes["N"].as_int()) if first else None
    return (*first, node.attributes["K"].as_int())


def _contrib(node: ir.Node, shapes: Sequence[Dims | None]) -> Sequence[Dims | None]:
    """Rotations and attention give results of their queries' size, if those are not joined with keys."""
    apart = node.op_type == "GroupQueryAttention" and len(shapes) > 1 and shapes[1] is not None
    return shapes[:1] if apart or node.op_type == "RotaryEmbedding" else []


Rule = Callable[[Sizes, ir.Node, Dims], Sequence[Dims | None]]


def _axis(node: ir.Node, rank: int, default: int = 0) -> int:
    axis = node.attributes.get_int("axis", default)
    return axis + rank if axis < 0 else axis


def _reshape(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    target = sizes.content(node.inputs[1])
    if target is None:
        return [None]
    return [reshaped(shape, target, bool(node.attributes.get_int("allowzero", 0)), node.outputs[0])]


def _transpose(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    perm = permutation(node, len(shape))
    return [tuple(shape[axis] for axis in perm)]


def permutation(node: ir.Node, rank: int) -> list[int]:
    """The order of axes of a Transpose."""
    perm = node.attributes.get("perm")
    return list(reversed(range(rank))) if perm is None else list(perm.as_ints())


def _split(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    axis, count = _axis(node, len(shape)), len(node.outputs)
    lengths: Sequence[Dim] | None = sizes.content(node.inputs[1]) if len(node.inputs) > 1 else None
    whole = shape[axis]
    if lengths is None and len(node.inputs) < 2 and isinstance(whole, int) and whole % count == 0:
        lengths = [whole // count] * count
    if lengths is None:
        lengths = [unknown(output, axis) for output in node.outputs]
    return [(*shape[:axis], length, *shape[axis + 1 :]) for length in lengths]


def _concat(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    shapes = [sizes.shape(value) for value in node.inputs]
    known = [other for other in shapes if other is not None]
    axis = _axis(node, len(shape))
    if len(known) < len(shapes):
        return [(*(unknown(node.outputs[0], i) if i == axis else dim for i, dim in enumerate(shape)),)]
    return [(*shape[:axis], total([other[axis] for other in known]), *shape[axis + 1 :])]


def _expand(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    return [broadcast([shape, sizes.content(node.inputs[1])], node.outputs[0])]


def _unsqueeze(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    axes = sizes.numbers(node.inputs[1])
    if axes is None:
        return [None]
    rank = len(shape) + len(axes)
    places = {axis % rank for axis in axes}
    left = iter(shape)
    return [tuple(1 if axis in places else next(left) for axis in range(rank))]


def _squeeze(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        known = all(isinstance(dim, int) for dim in shape)
        return [tuple(dim for dim in shape if dim != 1) if known else None]
    axes = sizes.numbers(node.inputs[1])
    if axes is None:
        return [None]
    places = {axis % len(shape) for axis in axes}
    return [tuple(dim for axis, dim in enumerate(shape) if axis not in places)]


def _slice(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    ends, starts = sizes.numbers(node.inputs[2]), sizes.numbers(node.inputs[1])
    given = len(node.inputs) > 3 and node.inputs[3] is not None
    axes = sizes.numbers(node.inputs[3]) if given else tuple(range(len(starts or ())))
    if axes is None or (starts is None and not given):
        return [tuple(unknown(node.outputs[0], axis) for axis in range(len(shape)))]
    steps = sizes.numbers(node.inputs[4]) if len(node.inputs) > 4 else (1,) * len(axes)
    dims = list(shape)
    symbols = sizes.content(node.inputs[1])
    for place, axis in enumerate(axes):
        bounds = None if None in (starts, ends, steps) else (starts[place], ends[place], steps[place])  # type: ignore[index]
        otherwise = unknown(node.outputs[0], axis % len(shape))
        if starts is None and symbols is not None and ends is not None and steps is not None:
            dims[axis] = _last(shape[axis], symbols[place], (ends[place], steps[place]), otherwise)
        else:
            dims[axis] = _sliced(shape[axis], bounds, otherwise)
    return [tuple(dims)]


def _last(dim: Dim, start: Dim, bounds: tuple[int, int], otherwise: str) -> Dim:
    """The size of what is left behind ``dim`` less a part of it: positions of the new tokens, of all, say."""
    prefix = f"({dim})-("
    endless = bounds[0] >= ENDLESS and bounds[1] == 1
    if not endless or not isinstance(start, str) or not start.startswith(prefix) or not start.endswith(")"):
        return otherwise
    part = start[len(prefix) : -1]
    return part if "(" not in part else otherwise


def _sliced(dim: Dim, bounds: tuple[int, int, int] | None, otherwise: str) -> Dim:
    if bounds is None:
        return otherwise
    start, end, step = bounds
    if isinstance(dim, int):
        return len(range(dim)[start:end:step])
    return dim if start == 0 and end >= ENDLESS and step == 1 else otherwise


def _reduce(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    given = node.attributes.get("axes")
    axes = tuple(given.as_ints()) if given is not None else None
    if axes is None and len(node.inputs) > 1:
        axes = sizes.numbers(node.inputs[1])
    if axes is None:
        return [None]
    places = {axis % len(shape) for axis in axes}
    keep = node.attributes.get_int("keepdims", 1)
    return [tuple(1 if a in places else dim for a, dim in enumerate(shape) if keep or a not in places)]


def _matmul(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    other = sizes.shape(node.inputs[1])
    if other is None or len(shape) < 2 or len(other) < 2:
        return [None]
    leading = broadcast([shape[:-2], other[:-2]], node.outputs[0])
    return [None if leading is None else (*leading, shape[-2], other[-1])]


def _gather(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    indices, axis = sizes.shape(node.inputs[1]), _axis(node, len(shape))
    return [None if indices is None else (*shape[:axis], *indices, *shape[axis + 1 :])]


def _gather_nd(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    indices = sizes.shape(node.inputs[1])
    if indices is None or not isinstance(indices[-1], int) or node.attributes.get_int("batch_dims", 0) != 0:
        return [None]
    return [(*indices[:-1], *shape[indices[-1] :])]


def _range(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    start, limit, step = (sizes.content(value) for value in node.inputs)
    counts = limit is not None and start == (0,) and step == (1,)
    return [limit if counts else (unknown(node.outputs[0], 0),)]


def _shape_op(sizes: Sizes, node: ir.Node, shape: Dims) -> list[Dims | None]:
    content = _shape_content(sizes, node)
    return [None if content is None else (len(content),)]


_RULES: dict[str, Rule] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Split": _split,
    "Concat": _concat,
    "Expand": _expand,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
    "MatMul": _matmul,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Range": _range,
    "Shape": _shape_op,
}


def _shape_content(sizes: Sizes, node: ir.Node) -> Dims | None:
    shape = sizes.shape(node.inputs[0])
    if shape is None:
        return None
    return shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(shape))]


def _moved_content(sizes: Sizes, node: ir.Node) -> Dims | None:
    """Squeeze, Unsqueeze, Reshape and Identity between rank 0 and 1, or on one element."""
    rank = sizes.shape(node.outputs[0])
    return sizes.content(node.inputs[0]) if rank is not None and len(rank) <= 1 else None


def _joined_content(sizes: Sizes, node: ir.Node) -> Dims | None:
    parts = [sizes.content(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    return tuple(dim for part in known for dim in part) if len(known) == len(parts) else None


def _sliced_content(sizes: Sizes, node: ir.Node) -> Dims | None:
    content = sizes.content(node.inputs[0])
    starts, ends = sizes.numbers(node.inputs[1]), sizes.numbers(node.inputs[2])
    steps = sizes.numbers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    if content is None or None in (starts, ends, steps):
        return None
    assert starts is not None
    assert ends is not None
    assert steps is not None
    return content[starts[0] : ends[0] : steps[0]]


def _gathered_content(sizes: Sizes, node: ir.Node) -> Dims | None:
    content, indices = sizes.content(node.inputs[0]), sizes.numbers(node.inputs[1])
    if content is None or indices is None or not all(-len(content) <= i < len(content) for i in indices):
        return None
    return tuple(content[i] for i in indices)


def _less_content(sizes: Sizes, node: ir.Node) -> Dims | None:
    one, other = (sizes.content(value) for value in node.inputs)
    if one is None or other is None or not len(one) == len(other) == 1:
        return None
    return (difference(one[0], other[0]),)


def _added_content(sizes: Sizes, node: ir.Node) -> Dims | None:
    one, other = (sizes.content(value) for value in node.inputs)
    if one is None or other is None or not len(one) == len(other) == 1:
        return None
    return (total([one[0], other[0]]),)


_CONTENT_RULES: dict[str, Callable[[Sizes, ir.Node], Dims | None]] = {
    "Shape": _shape_content,
    "Squeeze": _moved_content,
    "Unsqueeze": _moved_content,
    "Reshape": _moved_content,
    "Identity": _moved_content,
    "Concat": _joined_content,
    "Slice": _sliced_content,
    "Gather": _gathered_content,
    "Add": _added_content,
    "Sub": _less_content,
}
