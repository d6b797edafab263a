# SPDX-License-Identifier: Apache-2.0
"""Nodes that compute the same from the same inputs become one."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from bcq.passes.work import Work


def share_nodes(model: ir.Model, work: Work) -> None:
    """Merges equal nodes of the main graph, such as the attention mask that each layer makes anew."""
    common.CommonSubexpressionEliminationPass()(model)
