# SPDX-License-Identifier: Apache-2.0
"""BcqMatMul and BcqGather in onnxruntime's CUDA provider against its CPU provider: for tools/gpu_check.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]


def build_operators(folder: Path) -> Path:
    """The CPU library, which opens the CUDA part."""
    configure = ["cmake", "-S", str(ROOT / "runtime"), "-B", str(folder)]
    for command in (configure, ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]):
        subprocess.run(command, check=True, capture_output=True)
    return folder / "libbcq_ops.so"


def compare_providers(build: Path) -> str:
    """Runs nodes on both providers; raises AssertionError where they differ.

    Args:
        build: the folder of the CUDA part; the CPU library is built beside it.
    """
    os.environ["BCQ_LIBRARY"] = str(build_operators(build.parent / "gpu_ort"))
    sys.path.insert(0, str(ROOT / "tests"))
    import onnxruntime

    from bcq import contract
    from bcq.runtime import default_options, register_library
    from nodes import activations, brain_node, one_node, random_weight

    def result(model: bytes, feeds: dict[str, NDArray[Any]], provider: str) -> NDArray[Any]:
        options = default_options()
        # A node that nobody takes would fall back to the CPU and prove nothing.
        options.add_session_config_entry(
            "session.disable_cpu_ep_fallback", "1" if "CUDA" in provider else "0"
        )
        register_library(options)
        return np.asarray(
            onnxruntime.InferenceSession(model, options, providers=[provider]).run(None, feeds)[0]
        )

    weight = random_weight(200, 300, 3, 64, offset=True)
    worst = 0.0
    cases: list[tuple[contract.Op, Any, dict[str, NDArray[Any]]]] = []
    for dtype in (np.float32, np.float16):
        cases += [(contract.MATMUL, dtype, {"A": activations(M, 300, dtype)[None]}) for M in (1, 5)]
    cases.append((contract.GATHER, np.int64, {"indices": np.array([[0, 199, -1]])}))
    models = [(one_node(op, weight, dtype), feeds) for op, dtype, feeds in cases]
    models += [(brain_node(weight, 18), {"A": activations(M, 300)}) for M in (1, 5)]
    for made, feeds in models:
        model = made.SerializeToString()
        cuda, cpu = (
            result(model, feeds, f"{name}ExecutionProvider").astype(np.float64) for name in ("CUDA", "CPU")
        )
        worst = max(worst, float(np.linalg.norm(cuda - cpu) / np.linalg.norm(cpu)))
    # bfloat16 results, and weights in the tile kernels, are rounded to 2^-9 in the mean
    assert worst < 8e-3, f"providers differ by {worst:.1e}"
    return f"{len(models)} nodes on both providers, worst relative difference {worst:.1e}"
