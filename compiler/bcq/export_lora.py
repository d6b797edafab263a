# SPDX-License-Identifier: Apache-2.0
"""What an export or a quantization does with a LoRA checkpoint, and the gate on what is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.errors import UsageError
from bcq.lora import Lora

if TYPE_CHECKING:
    from bcq.base import QuantizedBase
    from bcq.export_tasks import ExportTasks

NAME = "lora"  # of the adapter that a base gets


@dataclass(frozen=True)
class ExportLora:
    """A LoRA checkpoint, and whether any loss is accepted."""

    lora: Lora
    allow_loss: bool

    @classmethod
    def open(cls, folder: str | Path, allow_loss: bool) -> ExportLora:
        """Reads the checkpoint; errors as `Lora.open`."""
        return cls(Lora.open(folder), allow_loss)

    @contextmanager
    def merged(self, model: Path, beside: Path) -> Iterator[Path]:
        """The model with the LoRA's change, in a temporary folder; errors as `bcq.merge.write_merged`."""
        from bcq.merge import merged_folder

        with merged_folder(model, self.lora, beside) as folder:
            yield folder

    def check(self, base: QuantizedBase, model: Path) -> None:
        """Refuses a base of the merged model that holds too little of the change.

        Raises:
            ParityFailure: E503.
        """
        from bcq.adapt import check_retained
        from bcq.merge import retained_by

        if not self.allow_loss:
            check_retained(retained_by(base, model, self.lora))

    def baked(self, base: QuantizedBase, tasks: ExportTasks) -> ExportTasks:
        """The tasks with the nearest adapter of a base as the one that the model shall hold.

        Raises:
            UsageError: E203 when another adapter is asked for.
            ParityFailure: E503 when too little is retained.
        """
        from bcq.adapt import adapt, check_retained

        if tasks.all:
            raise UsageError(
                "E203", "--lora and adapters do not go together.", "Make an adapter of it: bcq adapt."
            )
        adapter, found = adapt(base, self.lora, NAME)
        if not self.allow_loss:
            check_retained(found)
        return replace(tasks, baked=adapter)
