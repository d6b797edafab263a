# SPDX-License-Identifier: Apache-2.0
"""What ran the bench: processor and versions, for whoever reads its figures later."""

from __future__ import annotations

import datetime as dt
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bcq import __version__
from bcq.kernels.core import Core


def machine() -> dict[str, Any]:
    """Plain values: ``cpu``, ``cores``, ``load`` before the run, ``isa``, ``kernels``, versions, date."""
    core = Core.load()
    flags = core.flags()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "load": load(),
        "isa": core.isa_name(flags),
        "library": __version__,
        "kernels": [row.name for row in core.kernels("BcqMatMul") if not row.flags & ~flags],
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "made": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def load() -> float:
    """Programs that wanted a core in the last minute, on average; 0 where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 1)
    except OSError:
        return 0.0


def busy() -> str | None:
    """Why times measured now would mean little, or None."""
    now, cores = load(), os.cpu_count() or 1
    return (
        f"the machine is busy, load {now} on {cores} cores: times will mean little"
        if now > cores / 2
        else None
    )


def cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.machine()
