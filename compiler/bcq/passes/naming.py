# SPDX-License-Identifier: Apache-2.0
"""Names by which a user knows a matrix, also where an exporter has folded it into something nameless."""

from __future__ import annotations

import ast
import re

import onnx_ir as ir

_SCOPES = (
    "pkg.torch.onnx.name_scopes"  # torch.onnx.export(dynamo=True): the modules around a node, outermost first
)
_NAMELESS = re.compile(
    r"|val_\d+|_?\d+|onnx::\w+|(.*/)?Constant(_\d+)?_output_0|(t|transpose|permute)(_\d+)?"
)


def is_nameless(name: str | None) -> bool:
    """True when an exporter made the name up, such as ``val_309`` or ``onnx::MatMul_1234``."""
    return name is None or _NAMELESS.fullmatch(name) is not None


def name_after(node: ir.Node) -> str:
    """A name for the weight of ``node``: its module's path, else the node's own name, with ``.weight``."""
    return f"{_module_of(node)}.weight"


def _module_of(node: ir.Node) -> str:
    scopes = node.metadata_props.get(_SCOPES)
    if scopes:
        parts = _string_list(scopes)
        if len(parts) >= 2 and parts[-2]:
            return parts[-2]
    name = node.name or node.outputs[0].name or "matrix"
    path = [part for part in name.split("/") if part]
    return ".".join(path[:-1]) if len(path) > 1 else path[0]


def _string_list(text: str) -> list[str]:
    try:
        parsed = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [str(part) for part in parsed] if isinstance(parsed, list) else []


def fresh(wanted: str, taken: set[str]) -> str:
    """``wanted``, or ``wanted_1``, ``wanted_2`` and so on; the result is added to ``taken``."""
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


def value_names(model: ir.Model) -> set[str]:
    """All names of values in the model, subgraphs included."""
    names: set[str] = set()
    for graph in model.graphs():
        names.update(value.name for value in graph.inputs if value.name)
        names.update(graph.initializers)
        names.update(output.name for node in graph for output in node.outputs if output.name)
    return names
