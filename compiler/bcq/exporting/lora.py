# SPDX-License-Identifier: Apache-2.0
"""What an export or a quantization does with a LoRA checkpoint, and the gate on what is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.errors import UsageError
from bcq.files.atomic import AtomicFolder, check_apart
from bcq.files.base import QuantizedBase
from bcq.lora.checkpoint import Lora
from bcq.matrices.resume import Finished

if TYPE_CHECKING:
    from bcq.exporting.tasks import ExportTasks

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
        """The model with the LoRA's change in a temporary folder; errors as `bcq.lora.merge.write_merged`."""
        from bcq.lora.merge import merged_folder

        with merged_folder(model, self.lora, beside) as folder:
            yield folder

    def check(self, base: QuantizedBase, model: Path) -> None:
        """Refuses a base of the merged model that holds too little of the change.

        Raises:
            ParityFailure: E503.
        """
        from bcq.lora.adapt import check_retained
        from bcq.lora.merge import retained_by

        if not self.allow_loss:
            check_retained(retained_by(base, model, self.lora))

    def baked(self, base: QuantizedBase, tasks: ExportTasks) -> ExportTasks:
        """The tasks with the nearest adapter of a base as the one that the model shall hold.

        Raises:
            UsageError: E203 when another adapter is asked for.
            ParityFailure: E503 when too little is retained.
        """
        from bcq.lora.adapt import adapt, check_retained

        if tasks.all:
            raise UsageError(
                "E203", "--lora and adapters do not go together.", "Make an adapter of it: bcq adapt."
            )
        adapter, found = adapt(base, self.lora, NAME)
        if not self.allow_loss:
            check_retained(found)
        return replace(tasks, baked=adapter)


def quantize_merged(
    model: Path, change: ExportLora, output: Path, resume: bool = False, **settings: Any
) -> QuantizedBase:
    """Quantizes a model with a LoRA's change; the output appears when enough of it is retained.

    Args:
        model: Hugging Face folder.
        change: the LoRA.
        output: as in `bcq.quantize.quantize`.
        resume: as there.
        **settings: further arguments of that function.

    Raises:
        BcqError: as `bcq.quantize.quantize`, `bcq.lora.merge.write_merged` and `ExportLora.check`.
    """
    from bcq.quantize import quantize

    check_apart(model, output)
    finished = Finished(output, resume)
    with AtomicFolder(output, finished) as folder:
        with change.merged(model, folder) as merged:
            base = quantize(merged, folder / ".base", finished=finished, **settings)
        change.check(base, model)
        for path in sorted((folder / ".base").iterdir()):
            path.rename(folder / path.name)
        (folder / ".base").rmdir()
    return QuantizedBase.open(output)
