# SPDX-License-Identifier: Apache-2.0
"""What this machine offers: versions, the operator library, CPU features and their kernels, memory.

Of a model it tells which kernel each node gets.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bcq import contract
from bcq.errors import BcqError, UsageError
from bcq.kernels import cuda
from bcq.kernels.chosen import chosen_kernels, holds_resident
from bcq.kernels.core import Core
from bcq.runtime import settings_fault

_PACKAGES = (
    "onnx-bcq",
    "onnxruntime",
    "onnxruntime-genai",
    "numpy",
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
)


def facts(model: Path | None = None) -> dict[str, Any]:
    """Everything that ``bcq doctor`` prints; what the machine lacks is None and never an exception.

    Args:
        model: a packed model, an ``.onnx`` file or the folder of one, or None.

    Returns:
        ``python``, ``platform``, ``versions`` (by package), ``onnxruntime_api`` (needed), ``library`` (path,
        error, format version), ``cpu`` (model, count, detected and used instruction set, error), ``kernels``
        (chosen for each operator and bits, all built), ``weights`` (kernels for which a session copies
        the codes when its program does not choose, and the room for such copies, half of available memory),
        ``profile``, ``memory`` (total and available MB, huge pages), ``cuda`` (see `bcq.kernels.cuda.facts`);
        with a model also ``model`` and ``nodes`` (see `bcq.kernels.chosen.ChosenKernel`; None when the
        library refuses one of its variables, which is the error of ``cpu``, ``weights`` or ``profile``).

    Raises:
        InputError: when there is no such model, or it is damaged.
        ResourceError: E603 when a model is to be opened and the operator library is missing.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "onnxruntime_api": f"{contract.ORT_API_VERSION} or newer",
        **_library_facts(),
        "memory": {**_memory(), "huge_pages": _huge_pages()},
        "cuda": cuda.facts(),
        **({} if model is None else _model_facts(model)),
    }


def _model_facts(model: Path) -> dict[str, Any]:
    try:
        nodes = [asdict(node) for node in chosen_kernels(model)]
    except UsageError:  # a variable: its own row says why
        return {"model": str(model), "nodes": None}
    return {"model": str(model), "nodes": nodes}


def _huge_pages() -> str | None:
    """``always``, ``madvise`` or ``never``; all but the last give resident weights huge pages."""
    try:
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return None
    return modes.partition("[")[2].partition("]")[0] or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _library_facts() -> dict[str, Any]:
    try:
        core = Core.load()
    except BcqError as error:
        missing = {"path": None, "error": str(error)}
        return {"library": missing, "cpu": _cpu(None), "kernels": {}, "weights": None, "profile": None}
    fault = settings_fault() or ""
    return {
        "library": {"path": str(core.path), "error": None, "format_version": contract.FORMAT_VERSION},
        "cpu": _cpu(core),
        "kernels": _kernels(core),
        "weights": _weights(core, fault),
        "profile": _setting("BCQ_PROFILE", fault),
    }


def _setting(variable: str, fault: str) -> dict[str, str | None]:
    """What a variable says, and why the library refuses it."""
    error = fault if fault.startswith(f"{variable}: ") else None
    return {variable: os.environ.get(variable), "error": error}


def _weights(core: Core, fault: str) -> dict[str, Any]:
    kernels = [row.name for row in core.kernels(contract.MATMUL.name)]
    room = core.memory_for_copies()
    return {
        **_setting("BCQ_WEIGHTS", fault),
        "resident": [name for name in kernels if holds_resident(core, name)],
        "room_mb": None if room >= 2**63 else room // 2**20,
    }


def _cpu(core: Core | None) -> dict[str, Any]:
    return {
        "model": _cpu_model(),
        "count": os.cpu_count(),
        "detected": core.isa_name(core.detected_flags()) if core else None,
        "used": core.isa_name(core.flags()) if core else None,
        "BCQ_ISA": os.environ.get("BCQ_ISA"),
        "error": core.isa_error() if core else None,
    }


def _kernels(core: Core) -> dict[str, Any]:
    flags = core.flags()
    chosen = {
        f"{contract.MATMUL.name} {bits} bits": core.select_matmul(bits=bits, flags=flags)
        for bits in range(contract.MIN_BITS, contract.MAX_BITS + 1)
    }
    chosen[contract.GATHER.name] = core.select_gather(flags=flags)
    return {"chosen": chosen, "built": {op: [row.name for row in core.kernels(op)] for op in contract.OPS}}


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> dict[str, int | None]:
    """Total and available memory in MB, from the kernel's own table."""
    found: dict[str, int] = {}
    try:
        with Path("/proc/meminfo").open(encoding="utf-8") as file:
            for line in file:
                name, _, rest = line.partition(":")
                found[name] = int(rest.split()[0]) // 1024
    except (OSError, ValueError, IndexError):
        pass
    return {"total_mb": found.get("MemTotal"), "available_mb": found.get("MemAvailable")}
