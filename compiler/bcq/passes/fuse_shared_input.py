# SPDX-License-Identifier: Apache-2.0
"""BcqMatMul nodes that read the same activations become one, whose result a Split takes apart.

A product prepares look-up tables from its activations and wakes the threads: Q, K and V then do both once.
Rows of a matrix do not touch each other, so every result keeps its bits. Codes and alphas of the parts are
joined only when the writer asks for them, one fused matrix at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bcq import contract, fused
from bcq.passes import naming
from bcq.passes.report import Fusion
from bcq.passes.work import Work

_ALIKE = ("format_version", "layout", "bits", "K", "group_size", "accuracy_level")
_HASH_BLOCK = 1 << 24  # bytes of codes in memory while they are hashed


def fuse_shared_input(model: ir.Model, work: Work) -> None:
    """Fuses every set of alike products of one value; records what was fused, and what was not and why."""
    names = {matrix.packed.tensors[0]: matrix.ref.name for matrix in work.matrices if matrix.packed}
    taken = naming.value_names(model)
    for nodes in list(_readers(model.graph)):
        groups: dict[tuple[Any, ...], list[ir.Node]] = {}
        for node in nodes:
            reason = _reason_against(node)
            if reason:
                work.report.fusions.append(Fusion("", (_name(node, names),), reason))
            else:
                groups.setdefault(_kind(node), []).append(node)
        for kind, group in groups.items():
            parts = tuple(_name(node, names) for node in group)
            if len(group) > 1:
                name = naming.fresh(fused.joined_name(parts), set(names.values()))
                _fuse(model.graph, group, fused.parts_of(parts, [_int(n, "N") for n in group]), name, taken)
                work.report.fusions.append(Fusion(name, parts, ""))
            else:
                work.report.fusions.append(Fusion("", parts, _unlike(kind, groups)))


def _readers(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """The products of each value that two or more read, in the order of the graph."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if node.op_identifier()[:2] == (contract.DOMAIN, contract.MATMUL.name) and node.inputs[0] is not None:
            found.setdefault(node.inputs[0], []).append(node)
    yield from (nodes for nodes in found.values() if len(nodes) > 1)


def _reason_against(node: ir.Node) -> str:
    """Why a product cannot be part of a larger one, whatever the others are."""
    for value in _packed(node):
        if value.is_graph_input() or value.const_value is None:
            return f"'{value.name}' may be fed at run time"
        if value.is_graph_output() or len(value.uses()) > 1:
            return f"another node reads '{value.name}', too: a copy of it would be larger"
    return ""


def _kind(node: ir.Node) -> tuple[Any, ...]:
    """What must be equal for two products to be one: attributes, having an offset, planes not read."""
    values = tuple(node.attributes[name].value for name in _ALIKE)
    unread = _tensor(_packed(node)[0]).shape.numpy()[2] - _int(node, "bits")
    return (*values, _tensor(_packed(node)[3]).size > 0, unread)


def _unlike(kind: tuple[Any, ...], groups: dict[tuple[Any, ...], list[ir.Node]]) -> str:
    """In what the only product of its kind differs from another one that reads the same value."""
    other = next((other for other in groups if other != kind), None)
    if other is None:
        return "no other product of the same activations can be fused"
    pairs = zip((*_ALIKE, "offset", "unread planes"), kind, other, strict=True)
    differing = [f"{what} {mine}, not {yours}" for what, mine, yours in pairs if mine != yours]
    return f"unlike '{groups[other][0].name}', it has {', '.join(differing)}"


def _fuse(graph: ir.Graph, nodes: list[ir.Node], parts: list[fused.Part], name: str, taken: set[str]) -> None:
    activation, rows = nodes[0].inputs[0], [part.rows for part in parts]
    assert activation is not None
    columns = list(zip(*map(_packed, nodes), strict=True))
    joined = [
        _joined(graph, [_tensor(value) for value in column], rows, f"{name}.{port.name}", taken)
        for column, port in zip(columns, contract.MATMUL.inputs[1:], strict=True)
    ]
    attributes = {key: attribute.value for key, attribute in nodes[0].attributes.items()}
    attributes |= {"N": sum(rows), "code_hash": _hash([_tensor(value) for value in columns[0]], rows)}
    product = ir.node(
        contract.MATMUL.name, [activation, *joined], attributes, domain=contract.DOMAIN, name=nodes[0].name
    )
    fused.write_note(product.metadata_props, parts)
    _split(graph, nodes, product, rows, taken)
    for value in (value for column in columns for value in column):
        if not value.uses():
            del graph.initializers[str(value.name)]


def _split(graph: ir.Graph, nodes: list[ir.Node], product: ir.Node, rows: list[int], taken: set[str]) -> None:
    """Puts the fused product where the first of the nodes was, and gives their results by a Split."""
    before, output = nodes[0].outputs[0], product.outputs[0]
    output.name = naming.fresh(f"{before.name}_fused", taken)
    output.type = before.type
    if before.shape is not None:
        output.shape = ir.Shape([*before.shape[:-1], sum(rows)])
    sizes = constant(graph, np.array(rows, np.int64), f"{output.name}_sizes", taken)
    split = ir.node("Split", [output, sizes], {"axis": -1}, num_outputs=len(nodes))
    ir.convenience.replace_nodes_and_values(
        graph, nodes[0], nodes, [product, split], [node.outputs[0] for node in nodes], split.outputs
    )


def constant(graph: ir.Graph, array: NDArray[Any], wanted: str, taken: set[str]) -> ir.Value:
    """A new initializer."""
    tensor = ir.Tensor(array, name=naming.fresh(wanted, taken))
    return _registered(graph, tensor)


def _joined(
    graph: ir.Graph, tensors: Sequence[ir.TensorProtocol], rows: Sequence[int], wanted: str, taken: set[str]
) -> ir.Value:
    """An initializer with the rows of all parts, made anew each time that somebody reads it."""
    name = naming.fresh(wanted, taken)
    if tensors[0].size == 0 and len(tensors[0].shape) == 1:  # no offset
        return _registered(graph, ir.Tensor(tensors[0].numpy(), name=name))
    tiles = -(-sum(rows) // contract.TILE_ROWS)
    shape = ir.Shape([tiles, *tensors[0].shape.numpy()[1:]])
    return _registered(graph, ir.LazyTensor(_joiner(tensors, rows, name), tensors[0].dtype, shape, name=name))


def _joiner(
    tensors: Sequence[ir.TensorProtocol], rows: Sequence[int], name: str
) -> Callable[[], ir.TensorProtocol]:
    return lambda: ir.Tensor(fused.join_rows([tensor.numpy() for tensor in tensors], rows), name=name)


def _registered(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _hash(codes: Sequence[ir.TensorProtocol], rows: Sequence[int]) -> str:
    """SHA-256 of the joined codes, which are not held whole where no part ends inside a tile."""
    if any(count % contract.TILE_ROWS for count in rows[:-1]):
        whole = fused.join_rows([tensor.numpy() for tensor in codes], rows)
        return hashlib.sha256(np.ascontiguousarray(whole, "<u4").data).hexdigest()
    digest = hashlib.sha256()
    for tensor in codes:
        tiles = tensor.numpy()
        step = max(1, _HASH_BLOCK * len(tiles) // tiles.nbytes)
        for start in range(0, len(tiles), step):
            digest.update(np.ascontiguousarray(tiles[start : start + step], "<u4").data)
    return digest.hexdigest()


def _packed(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs[1:] if value is not None]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None  # _reason_against has looked
    return value.const_value


def _int(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int()


def _name(node: ir.Node, names: dict[ir.Value, str]) -> str:
    codes = node.inputs[1]
    assert codes is not None
    return names.get(codes, str(codes.name))
