# SPDX-License-Identifier: Apache-2.0
"""The tasks of an export: one whose values replace the base's, or several that are swapped per request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bcq.adapters.adapter import Adapter
from bcq.adapters.folder import write_files
from bcq.adapters.slots import FOLDER, Slot, Slots
from bcq.adapters.tasks import BASE_KEY
from bcq.errors import UsageError
from bcq.files.atomic import check_apart

if TYPE_CHECKING:
    import onnx_ir as ir

    from bcq.files.base import QuantizedBase
    from bcq.passes import WeightSource

BAKED_KEY = "bcq.adapter"  # in the model's metadata: the task whose values it holds
Source = str | Path | Adapter


@dataclass
class ExportTasks:
    """What an export is told about adapters; its steps in the order in which an export takes them.

    Attributes:
        baked: the task that the model shall be made for, or None.
        swappable: the tasks that the model shall serve, one per request.
    """

    baked: Adapter | None = None
    swappable: tuple[Adapter, ...] = ()
    _dense: list[Slot] = field(default_factory=list)

    @classmethod
    def open(cls, adapter: Source | None, adapters: Sequence[Source], output: str | Path) -> ExportTasks:
        """Reads the adapters.

        Raises:
            InputError: as `Adapter.open`.
            UsageError: E203 for both at once, for two of one name, and for an output that would replace one.
        """
        if adapter is not None and adapters:
            raise UsageError("E203", "--adapter and --adapters do not go together.", "Choose one of them.")
        for source in (adapter, *adapters):
            if source is not None and not isinstance(source, Adapter):
                check_apart(Path(source), output)
        swappable = tuple(map(_opened, adapters))
        names = [task.name for task in swappable]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError("E203", f"two adapters have the name '{twice}'.", "Rename or leave out one.")
        return cls(None if adapter is None else _opened(adapter), swappable)

    @property
    def all(self) -> tuple[Adapter, ...]:
        """Every adapter."""
        return self.swappable if self.baked is None else (self.baked, *self.swappable)

    def check_fits(self, base: QuantizedBase) -> None:
        """Raises InputError E301 or E302 for the first that does not fit; see `Adapter.check_fits`."""
        for adapter in self.all:
            adapter.check_fits(base)

    def weights(self, base: QuantizedBase) -> WeightSource:
        """Where the packed matrices come from."""
        from bcq.passes import FromBase
        from bcq.passes.adapted import FromAdapted

        return FromBase(base) if self.baked is None else FromAdapted(base, self.baked)

    def before_passes(self, models: Sequence[ir.Model]) -> None:
        """Puts the baked task's dense tensors into the graphs, or opens slots of the first for the others."""
        from bcq.files.exported import REPLACED_KEY
        from bcq.passes.adapted import replace_dense
        from bcq.passes.open_slots import open_dense_slots

        if self.baked is not None:
            replace_dense(models, self.baked)
            for model in models:
                model.metadata_props[BAKED_KEY] = self.baked.name
                model.metadata_props[REPLACED_KEY] = json.dumps(sorted(self.baked.dense))
        self._dense = open_dense_slots(models[0], self.swappable)

    def after_passes(self, model: ir.Model, base: QuantizedBase, folder: Path) -> None:
        """Opens the slots of factors, and writes what each runtime needs of every task."""
        if not self.swappable:
            return
        from bcq.passes.open_slots import open_slots

        slots = open_slots(model, base, self.swappable, self._dense)
        model.metadata_props[BASE_KEY] = slots.base_hash
        (folder / FOLDER).mkdir()
        slots.write(folder / FOLDER)
        for adapter in self.swappable:
            write_task(adapter, slots, folder / FOLDER / adapter.name)


def write_task(adapter: Adapter, slots: Slots, folder: Path) -> None:
    """Writes one task of an export: its tensors as they were, and the file of onnxruntime.

    Raises:
        InputError: as `bcq.adapters.slots.Slots.values`.
    """
    from bcq.adapters import ort

    values = slots.values(adapter)
    folder.mkdir()
    write_files(adapter, folder)
    ort.write_ort(values, slots.mark, folder / ort.FILE)


def _opened(source: Source) -> Adapter:
    return source if isinstance(source, Adapter) else Adapter.open(source)
