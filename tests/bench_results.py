# SPDX-License-Identifier: Apache-2.0
"""Made-up measurements for the tests of the bench's tables, goals and pictures."""

from __future__ import annotations

from typing import Any

from bcq.bench.result import BenchResult, Measurement

MACHINE = {
    "cpu": "A CPU", "cores": 2, "load": 0.1, "isa": "avx2", "library": "1.0", "kernels": ["scalar"],
    "onnxruntime": "1.31", "numpy": "2.4", "made": "2026-01-01 00:00 UTC",
}  # fmt: skip


def measured(contender: str, microseconds: float, **changes: Any) -> Measurement:
    """A measurement of a 64 x 64 product; what is not given is of no weight."""
    fields: dict[str, Any] = {
        "family": "bcq" if contender.startswith("BcqMatMul") else "onnxruntime",
        "bits": 3, "arithmetic": "near-exact", "kernel": "", "group_size": 64, "rows": 64, "inputs": 64,
        "tokens": 1, "threads": 2, "cold": True, "weight_bytes": 1_000_000, "best": microseconds,
        "low": microseconds, "high": microseconds, "error": 1e-5, "bandwidth": 20.0, "bandwidth_best": 25.0,
    }  # fmt: skip
    return Measurement(contender=contender, microseconds=microseconds, **{**fields, **changes})


def ours(microseconds: float, bits: int = 3, arithmetic: str = "near-exact", **changes: Any) -> Measurement:
    """A measurement of BcqMatMul."""
    name = f"BcqMatMul q={bits} g=64" + ("" if arithmetic == "near-exact" else f" {arithmetic}")
    return measured(name, microseconds, bits=bits, arithmetic=arithmetic, **changes)


def peer(name: str, microseconds: float, bits: int, arithmetic: str = "int8", **changes: Any) -> Measurement:
    """A measurement of a peer."""
    return measured(name, microseconds, bits=bits, arithmetic=arithmetic, **changes)


def result(*measurements: Measurement, absent: dict[str, str] | None = None) -> BenchResult:
    """A result of them."""
    return BenchResult(dict(MACHINE), measurements, absent or {})
