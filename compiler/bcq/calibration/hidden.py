# SPDX-License-Identifier: Apache-2.0
"""Hidden states between two blocks: a file, because those of all windows need not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class HiddenStates:
    """One float32 tensor ``[windows, tokens, hidden]`` a batch, read and replaced by its number.

    Reads and writes do not map the file, so its pages never count as memory of this process. Threads may work
    on different batches at the same time.

    Args:
        path: file to create.
        shapes: ``(windows, tokens)`` of each batch.
    """

    def __init__(self, path: Path, shapes: Sequence[tuple[int, int]]) -> None:
        self._shapes = list(shapes)
        self._width = 0
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def __len__(self) -> int:
        return len(self._shapes)

    def read(self, number: int) -> torch.Tensor:
        """The states of a batch."""
        import torch

        states = torch.empty((*self._shapes[number], self._width), dtype=torch.float32)
        buffer = states.numpy().data.cast("B")
        done, offset = 0, self._offset(number)
        while done < len(buffer):
            count = os.preadv(self._handle, [buffer[done:]], offset + done)
            if not count:
                raise OSError(f"hidden states of batch {number} are missing")
            done += count
        return states

    def write(self, number: int, states: torch.Tensor) -> None:
        """Puts the states of a batch in their place; all batches have one hidden size."""
        expected = (*self._shapes[number], self._width or states.shape[-1])
        if tuple(states.shape) != expected:
            raise ValueError(f"hidden states: got {list(states.shape)}, expected {list(expected)}")
        self._width = expected[-1]
        buffer = states.float().contiguous().numpy().data.cast("B")
        done, offset = 0, self._offset(number)
        while done < len(buffer):
            done += os.pwrite(self._handle, buffer[done:], offset + done)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._handle)

    def _offset(self, number: int) -> int:
        return 4 * self._width * sum(windows * tokens for windows, tokens in self._shapes[:number])
