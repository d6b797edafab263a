# SPDX-License-Identifier: Apache-2.0
"""The graphs of further precisions of an export: made from the same skeleton as the first one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.precisions import further
from bcq.precisions.files import MODEL_FILE, graph_name

if TYPE_CHECKING:
    import onnx_ir as ir

    from bcq.files.base import QuantizedBase
    from bcq.matrices.plan import QuantizeOptions
    from bcq.passes import WeightSource

Pack = Callable[["ir.Model", "WeightSource"], object]


class FurtherGraphs:
    """One graph for each further precision that a base serves; none for an ordinary base.

    Args:
        base: the quantized base.
        skeleton: its graph before any pass; it is copied.
        name: the file of the graph of the highest precision.
    """

    def __init__(self, base: QuantizedBase, skeleton: ir.Model, name: str = MODEL_FILE) -> None:
        self._base = base
        self._name = name
        self._skeletons = {bits: skeleton.clone() for bits in reversed(base.further_bits())}

    def models(self, first: ir.Model, pack: Pack) -> dict[str, ir.Model]:
        """All models by the names of their files, the highest precision first.

        Args:
            first: the packed model of the highest precision.
            pack: runs the passes on a model, with weights from a source.
        """
        from bcq.passes import FromBase

        for bits, model in self._skeletons.items():
            pack(model, FromBase(self._base, bits))
        lower = {graph_name(bits, self._name): model for bits, model in self._skeletons.items()}
        return {self._name: first, **lower}


def check_precisions(source: Path | QuantizedBase, options: QuantizeOptions | None, tasks: bool) -> None:
    """Refuses several precisions of what cannot have them.

    Args:
        source: what is exported.
        options: how it is quantized; None for a base.
        tasks: whether the export serves or holds tasks, whose factors have one precision only.

    Raises:
        UsageError: E203.
    """
    wanted = options.also_bits if options else () if isinstance(source, Path) else source.further_bits()
    if isinstance(source, Path) and source.suffix.lower() == ".onnx":
        further.refuse_with(wanted, f"the graph {source}", "Give a model folder.")
    if tasks:
        further.refuse_with(wanted, "adapters or LoRA: a task fits one precision", "Quantize without it.")


def recorded(options: QuantizeOptions) -> dict[str, Any]:
    """What reports say about further precisions; nothing where there are none."""
    return {"also_bits": list(options.also_bits)} if options.also_bits else {}
