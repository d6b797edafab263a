# SPDX-License-Identifier: Apache-2.0
"""What a stopped run needs to go on as if it had not been stopped: a safetensors file beside the output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from bcq.errors import InputError
from bcq.files.atomic import sync

_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingState:
    """Trained numbers and the moments of Adam, written whole or not at all.

    Args:
        file: where they go; None for nowhere.
        key: identifies base, data and options; a file with another key is refused.
        trained: parameters by name.
        optimizer: Adam over exactly these, in this order.
    """

    def __init__(
        self,
        file: Path | None,
        key: str,
        trained: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._file, self._key, self._trained, self._optimizer = file, key, trained, optimizer

    def write(self, step: int) -> None:
        """Saves the state after ``step`` updates."""
        if self._file is None:
            return
        from safetensors.torch import save_file

        tensors = {}
        for name, parameter in self._trained.items():
            tensors[name] = parameter.detach()
            for moment in _MOMENTS:
                tensors[f"{name}/{moment}"] = self._optimizer.state[parameter][moment]
        partial = self._file.with_name(f"{self._file.name}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"key": self._key, "step": str(step)})
        sync(partial)
        partial.replace(self._file)

    def read(self) -> int:
        """Takes over what `write` saved; the number of updates done, 0 when there is no file.

        Raises:
            InputError: E103 for a damaged file, E109 for one of another run.
        """
        if self._file is None or not self._file.is_file():
            return 0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file, "pt") as stored:
                notes = stored.metadata() or {}
                if notes.get("key") != self._key:
                    raise InputError(
                        "E109",
                        f"{self._file} is the checkpoint of a run on other data, options or another base.",
                        "Run without --resume, or as the stopped run was started.",
                    )
                step = int(notes["step"])
                for name, parameter in self._trained.items():
                    parameter.data.copy_(stored.get_tensor(name))
                    self._optimizer.state[parameter] = {"step": torch.tensor(float(step))} | {
                        moment: stored.get_tensor(f"{name}/{moment}") for moment in _MOMENTS
                    }
        except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as fault:
            raise InputError(
                "E103", f"the checkpoint {self._file} is damaged: {fault}.", "Run without --resume."
            ) from fault
        return step

    def remove(self) -> None:
        """Removes the file: the run is done."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
