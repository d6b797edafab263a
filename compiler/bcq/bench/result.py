# SPDX-License-Identifier: Apache-2.0
"""What the kernel bench measured, and its table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from bcq import report

GIGA = 1e9
MICRO = 1e-6


@dataclass(frozen=True)
class Measurement:
    """One product ``[M, K] x [K, N]`` of one contender.

    Attributes:
        contender: for example ``"BcqMatMul q=3 g=128"`` or ``"MatMulNBits 4-bit b=128"``.
        ours: whether it is BcqMatMul.
        bits: per weight, scales not counted; 32 for float32.
        rows: N, output features.
        inputs: K, input features.
        tokens: M, rows of activations.
        threads: threads of onnxruntime.
        cold: whether the weights came from memory (copies rotated) and not from caches.
        weight_bytes: bytes of one copy of the weights: codes or elements, scaling factors, nothing else.
        microseconds: median time of one product, preparation of activations included.
        best: shortest time, in microseconds: what a machine shared with others can do.
        low: first quartile of the times, in microseconds.
        high: third quartile.
        error: relative root mean square error against float64.
        bandwidth: GB/s read by NumPy in the same run, a lower bound of the memory's.
    """

    contender: str
    ours: bool
    bits: int
    rows: int
    inputs: int
    tokens: int
    threads: int
    cold: bool
    weight_bytes: int
    microseconds: float
    best: float
    low: float
    high: float
    error: float
    bandwidth: float

    @property
    def problem(self) -> tuple[int, int, int, int, bool]:
        """What contenders are compared on: N, K, M, threads, cold."""
        return (self.rows, self.inputs, self.tokens, self.threads, self.cold)

    @property
    def gigabytes_per_second(self) -> float:
        """weight_bytes / time: activations and outputs are not counted."""
        return self.weight_bytes / (self.microseconds * MICRO) / GIGA

    @property
    def floor(self) -> float:
        """Microseconds that reading the weights once takes at the measured bandwidth."""
        return self.weight_bytes / (self.bandwidth * GIGA) / MICRO


@dataclass(frozen=True)
class BenchResult:
    """All measurements of a run, in the order in which they were asked for."""

    kernel: str
    versions: dict[str, str]
    measurements: tuple[Measurement, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types, with the derived figures, for ``--json``."""
        rows = [
            {**asdict(m), "gigabytes_per_second": m.gigabytes_per_second, "floor": m.floor}
            for m in self.measurements
        ]
        return {"kernel": self.kernel, "versions": self.versions, "measurements": rows}


def to_table(result: BenchResult) -> str:
    """The measurements as plain text, one block a problem."""
    lines = [f"kernel {result.kernel}; " + ", ".join(f"{k} {v}" for k, v in result.versions.items())]
    previous: tuple[int, int, int, int, bool] | None = None
    for m in result.measurements:
        if m.problem != previous:
            lines += ["", _title(m), _HEADER]
            previous = m.problem
        lines.append(_line(m))
    return "\n".join([*lines, "", to_ratios(result)])


def to_ratios(result: BenchResult) -> str:
    """A Markdown table of times of peers over times of BcqMatMul: above 1 means faster than the peer.

    Each bit width meets float32, and the peer with the fewest bits that are not fewer than its own.
    """
    by_problem = [list(group) for _, group in groupby(result.measurements, lambda m: m.problem)]
    rows = []
    for group in by_problem:
        peers = sorted((m for m in group if not m.ours), key=lambda m: m.bits)
        for ours in (m for m in group if m.ours):
            nearest = next(peer for peer in peers if peer.bits >= ours.bits)
            rows.append(_ratio(ours, nearest, peers[-1]))
    header = ["N x K", "M", "threads", "weights", "q", "us", "peer", "faster", "than fp32"]
    return report.table(header, rows, "lrrlrrlrr")


_HEADER = (
    f"  {'contender':<26}{'us':>9}{'best':>9}{'quartiles':>16}"
    f"{'MB':>8}{'GB/s':>7}{'floor us':>10}{'error':>10}"
)


def _title(m: Measurement) -> str:
    threads = f"{m.threads} thread" + ("s" if m.threads != 1 else "")
    state = "weights from memory" if m.cold else "weights in cache"
    return f"N={m.rows} K={m.inputs} M={m.tokens}, {threads}, {state}, memory read {m.bandwidth:.1f} GB/s"


def _ratio(ours: Measurement, nearest: Measurement, dense: Measurement) -> list[str]:
    return [
        f"{ours.rows} x {ours.inputs}",
        str(ours.tokens),
        str(ours.threads),
        "memory" if ours.cold else "cache",
        str(ours.bits),
        f"{ours.microseconds:.0f}",
        f"{nearest.bits}-bit",
        f"{nearest.microseconds / ours.microseconds:.2f}x",
        f"{dense.microseconds / ours.microseconds:.1f}x",
    ]


def _line(m: Measurement) -> str:
    quartiles = f"{m.low:.0f} - {m.high:.0f}"
    return (
        f"  {m.contender:<26}{m.microseconds:>9.1f}{m.best:>9.1f}{quartiles:>16}{m.weight_bytes / 1e6:>8.2f}"
        f"{m.gigabytes_per_second:>7.1f}{m.floor:>10.1f}{m.error:>10.1e}"
    )
