# SPDX-License-Identifier: Apache-2.0
"""What the user asked for when matrices are solved on calibration text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcq.errors import UsageError

MOST_WINDOWS = 128  # unless asked for otherwise
LEAST_WINDOWS = 32
TOKENS_AN_INPUT = 6  # of the widest matrix: more changed results by less than their spread
MOST_TOKENS = 512  # a window, unless asked for otherwise: moments need many tokens, not long contexts
MOST_WORKERS = 4  # unless asked for otherwise: each holds one matrix and its second moments


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of ``bcq quantize --calibrate``.

    Attributes:
        calibrate: text to run the model on: ``.txt`` or ``.jsonl``, also packed (``.xz``, ``.gz``, ``.bz2``),
            or a folder of such files.
        calibration_windows: windows of text; encoders take lines of as many tokens in all. None is 6 tokens
            for each input of the widest matrix, 32 to 128 windows.
        calibration_tokens: tokens a window, and the longest line; None is the model's context, at most 512.
        workers: processes that solve matrices, and threads that run the model; None is one a core, at most
            4. The result does not depend on it.
        refine: passes over the text in which the factors of each block's matrices are trained together,
            against what the dense block makes of the text; 0 for none.
        scheduler: address of a Dask scheduler whose workers solve the matrices, such as
            ``tcp://host:8786``; empty for processes of this machine.

    Raises:
        UsageError: E202 when a value is outside its range.
    """

    calibrate: Path
    calibration_windows: int | None = None
    calibration_tokens: int | None = None
    workers: int | None = None
    refine: int = 0
    scheduler: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "calibrate", Path(self.calibrate))
        if self.calibration_windows is not None:
            _check_least("--calibration-windows", self.calibration_windows, 1)
        if self.calibration_tokens is not None:
            _check_least("--calibration-tokens", self.calibration_tokens, 2)
        if self.workers is not None:
            _check_least("--workers", self.workers, 1)
        _check_least("--refine", self.refine, 0)
        if self.scheduler and "://" not in self.scheduler:
            raise UsageError(
                "E202",
                f"--scheduler: got {self.scheduler!r}, expected an address with its protocol.",
                "Such as tcp://10.0.0.1:8786, as `dask scheduler` prints it.",
            )

    @property
    def parallel(self) -> int:
        """How many matrices are solved at a time on this machine."""
        return self.workers or min(MOST_WORKERS, _cores())

    def windows(self, width: int, widest: int) -> int:
        """How many windows of ``width`` tokens; ``widest`` is the largest K of the model."""
        enough = -(-TOKENS_AN_INPUT * widest // width)
        return self.calibration_windows or min(MOST_WINDOWS, max(LEAST_WINDOWS, enough))

    def described(self) -> dict[str, Any]:
        """What decides the result, for ``config.json``: not where it was computed."""
        described = {
            "text": self.calibrate.name,
            "windows": self.calibration_windows,
            "tokens": self.calibration_tokens,
        }
        return {**described, "refine": self.refine} if self.refine else described


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_least(flag: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError("E202", f"{flag}: got {value!r}, expected an integer that is at least {least}.")
