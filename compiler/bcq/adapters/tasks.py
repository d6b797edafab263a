# SPDX-License-Identifier: Apache-2.0
"""The tasks that an exported model can run: their values as feeds of its session, read once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bcq.adapters.adapter import Adapter, check_name
from bcq.adapters.folder import CONFIG_FILE
from bcq.adapters.slots import FOLDER, Slots
from bcq.errors import InputError
from bcq.files.inside import inner_file

BASE_KEY = "bcq.base_hash"  # in the metadata of a model with slots
Feeds = dict[str, NDArray[Any]]
Task = str | Path | Adapter | None  # a name in the export, a folder from elsewhere, an opened one; the base


class Tasks:
    """The adapters of one export.

    Args:
        folder: what ``bcq export --adapters`` wrote.
        base_hash: that of the model itself, where it is at hand: slots of another one are refused.

    Raises:
        InputError: E303 for an export without slots; E301 when slots and model are of different bases; as
            `Slots.read` for a damaged list of slots.
    """

    def __init__(self, folder: str | Path, base_hash: str | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / FOLDER).is_dir():
            raise no_slots(self.folder)
        self.slots = Slots.read(self.folder / FOLDER)
        if base_hash is not None and base_hash != self.slots.base_hash:
            raise InputError(
                "E301",
                f"{self.folder / FOLDER} is of base {self.slots.base_hash}, the model of {base_hash}.",
                "Copy the whole export again.",
            )
        self._feeds: dict[str, Feeds] = {}

    def names(self) -> list[str]:
        """The tasks that lie in the export, sorted."""
        return sorted(path.name for path in (self.folder / FOLDER).iterdir() if path.is_dir())

    def feeds(self, task: Task) -> Feeds:
        """What to feed beside a model's ordinary inputs; nothing for None, the base itself.

        Args:
            task: a name in the export, the folder of an adapter from elsewhere, or an opened adapter.

        Raises:
            InputError: E303 for an unknown name; as `Adapter.open` and `Slots.values` for one that is damaged
                or does not fit.
        """
        if task is None:
            return {}
        if isinstance(task, Adapter):
            return self.slots.values(task)
        key = str(task)
        if key not in self._feeds:
            self._feeds[key] = self.slots.values(Adapter.open(self._place(key)))
        return self._feeds[key]

    def _place(self, task: str) -> Path:
        if task in self.names():
            check_name(task)
            place = self.folder / FOLDER / task
            inner_file(place / CONFIG_FILE, self.folder, "it is an adapter of the export")
            return place
        if Path(task).is_dir():
            return Path(task)
        known = ", ".join(self.names()) or "none"
        raise InputError("E303", f"{self.folder} has no adapter '{task}'; it has: {known}.", "Choose one.")


def no_slots(folder: Path) -> InputError:
    """The error for an export in which nothing can be swapped."""
    return InputError(
        "E303",
        f"{folder} is an export without adapters: nothing in it can be swapped.",
        "Export the base again with --adapters.",
    )


def feeds(folder: str | Path, task: Task) -> Feeds:
    """What a plain onnxruntime session is fed beside its ordinary inputs to compute a task.

    Args:
        folder: what ``bcq export --adapters`` wrote.
        task: as in `Tasks.feeds`.

    Returns:
        Arrays by the names of graph inputs; float16 factors are in the layout of the operators.

    Raises:
        InputError: see `Tasks`.
    """
    return Tasks(folder).feeds(task)
