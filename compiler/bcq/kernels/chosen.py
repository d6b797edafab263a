# SPDX-License-Identifier: Apache-2.0
"""Which kernel each node of a packed model gets on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from bcq import contract, runtime
from bcq.kernels.core import Core


@dataclass(frozen=True)
class ChosenKernel:
    """One BCQ node and what runs it here.

    Attributes:
        name: the node's name; empty when it has none.
        op: ``BcqMatMul`` or ``BcqGather``.
        bits: q, planes of its matrix.
        K: inputs of its matrix.
        N: rows of its matrix.
        group_size: inputs that share a scale.
        accuracy_level: see ``ops/README.md``; None for a gather, which has none.
        kernel: a name from ``Core.kernels(op)``.
        weights: ``mapped`` or ``resident``, as a session holds its codes that asks for nothing else.
    """

    name: str
    op: str
    bits: int
    K: int
    N: int
    group_size: int
    accuracy_level: int | None
    kernel: str
    weights: str


def chosen_kernels(folder_or_file: str | Path) -> list[ChosenKernel]:
    """The BCQ nodes of a model in the order of its file, also inside subgraphs.

    The model is opened as a session first: what the operator library refuses is refused here, so the listed
    attributes are valid ones.

    Args:
        folder_or_file: an ``.onnx`` file, or a folder that holds ``model.onnx``.

    Raises:
        InputError: as `bcq.runtime.session` and `bcq.frontends.onnx_file.load`.
        ResourceError: E603 when the operator library is missing or cannot be used.
    """
    from bcq.frontends import onnx_file

    path = runtime.model_file(folder_or_file)
    runtime.session(path)
    core = Core.load()
    nodes = onnx_file.load(path).graph.all_nodes()
    left = core.memory_for_copies()
    chosen = []
    for node in nodes:
        if node.domain != contract.DOMAIN:
            continue
        chosen.append(_chosen(core, node, left))
        if chosen[-1].weights == "resident":
            left -= _code_bytes(chosen[-1].N, chosen[-1].K, chosen[-1].bits)
    return chosen


def _code_bytes(rows: int, inputs: int, bits: int) -> int:
    return -(-rows // contract.TILE_ROWS) * -(-inputs // contract.WORD_BITS) * bits * 64


def _chosen(core: Core, node: ir.Node, left: int) -> ChosenKernel:
    level = node.attributes.get_int("accuracy_level") if node.op_type == contract.MATMUL.name else None
    sizes = {name: node.attributes.get_int(name) or 0 for name in ("bits", "K", "N", "group_size")}
    kernel = (
        core.select_gather(flags=core.flags())
        if level is None
        else core.select_matmul(**sizes, accuracy_level=level, flags=core.flags())
    )
    wanted = _code_bytes(sizes["N"], sizes["K"], sizes["bits"])
    resident = level is not None and holds_resident(core, kernel, wanted, left)
    return ChosenKernel(
        name=node.name or "",
        op=node.op_type,
        **sizes,
        accuracy_level=level,
        kernel=kernel,
        weights="resident" if resident else "mapped",
    )


def holds_resident(core: Core, kernel: str, wanted: int = 0, left: int = 0) -> bool:
    """Whether the library copies the codes of a BcqMatMul with this kernel, as ``BCQ_WEIGHTS`` has it.

    Args:
        core: the loaded library.
        kernel: a name from ``Core.kernels``.
        wanted: bytes of the codes.
        left: bytes that copies may still take when the library chooses; see ``Core.memory_for_copies``.
    """
    weights = os.environ.get("BCQ_WEIGHTS") or "auto"
    return weights == "resident" or (weights == "auto" and core.has_own_order(kernel) and wanted <= left)
