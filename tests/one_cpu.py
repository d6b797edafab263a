# SPDX-License-Identifier: Apache-2.0
"""What the library chooses and computes on the CPU that runs this file, as a line of JSON; for emulators."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from typing import Any

import numpy as np

from bcq import contract
from bcq.kernels.core import Core
from bcq.packing import PackedWeight, pack
from kernel_classes import level
from nodes import activations, one_node, random_weight, run_node

LEVELS = range(5)


def problems() -> list[tuple[Any, PackedWeight]]:
    """Activations and weights: both types, tails of rows and inputs, one row of A and several."""
    shapes = [
        (40, 300, 3, 64, 3, np.float32),
        (33, 100, 2, 32, 7, np.float16),
        (16, 416, 5, 128, 1, np.float32),
    ]
    return [
        (activations(m, k, t), pack(random_weight(n, k, q, g, offset=True))) for n, k, q, g, m, t in shapes
    ]


def matmul_digest(core: Core, kernel: str) -> str:
    """SHA-256 of what a BcqMatMul kernel computes."""
    results = [
        core.matmul(a, weight, kernel=kernel, accuracy_level=level(kernel)) for a, weight in problems()
    ]
    return sha256(b"".join(y.tobytes() for y in results)).hexdigest()


def gather_digest(core: Core, kernel: str) -> str:
    """SHA-256 of what a BcqGather kernel computes."""
    results = [core.gather(np.array([0, -1, 7]), weight, kernel=kernel) for _, weight in problems()]
    return sha256(b"".join(y.tobytes() for y in results)).hexdigest()


def runnable(core: Core, op: str) -> list[str]:
    """The kernels that this CPU runs."""
    return [row.name for row in core.kernels(op) if not row.flags & ~core.detected_flags()]


def everything(with_session: bool) -> dict[str, Any]:
    """The instruction set, the choices, and a digest of each kernel's results."""
    core = Core.load()
    flags = core.flags()
    told: dict[str, Any] = {
        "isa": core.isa_name(flags),
        "selected": [core.select_matmul(bits=3, flags=flags, accuracy_level=n) for n in LEVELS],
        "gather": core.select_gather(flags=flags),
        "matmul_digests": {name: matmul_digest(core, name) for name in runnable(core, contract.MATMUL.name)},
        "gather_digests": {name: gather_digest(core, name) for name in runnable(core, contract.GATHER.name)},
    }
    if with_session:
        y = run_node(one_node(contract.MATMUL, random_weight(20, 64, 2, 32)), {"A": activations(2, 64)[None]})
        told["session"] = np.asarray(y).ravel().tolist()
    return told


if __name__ == "__main__":
    print(json.dumps(everything(with_session="session" in sys.argv[1:])))
