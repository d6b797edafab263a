# SPDX-License-Identifier: Apache-2.0
"""What the kernel bench measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from bcq.bench.plan import Problem

GIGA = 1e9
MICRO = 1e-6


@dataclass(frozen=True)
class Measurement:
    """One product ``[M, K] x [K, N]`` of one contender.

    Attributes:
        contender: for example ``"BcqMatMul q=3 g=128"`` or ``"MatMulNBits 4-bit b=128"``.
        family: whose it is: ``bcq``, ``onnxruntime``, ``openvino``, ``torch``, ``ggml``.
        bits: per weight, scales not counted; 32 for float32.
        arithmetic: class of exactness: ``near-exact``, ``int8`` or ``float32`` activations.
        kernel: the name of our kernel; empty for peers.
        group_size: inputs per scaling factor of ours; 0 for peers.
        rows: N, output features.
        inputs: K, input features.
        tokens: M, rows of activations.
        threads: threads that compute.
        cold: whether the weights came from memory (copies rotated) and not from caches.
        weight_bytes: bytes of one copy of the weights: codes or elements, scaling factors, nothing else.
        microseconds: median time of one product, preparation of activations included.
        best: shortest time, in microseconds: what a machine shared with others can do.
        low: first quartile of the times, in microseconds.
        high: third quartile.
        error: relative root mean square error against float64.
        bandwidth: GB/s that a plain reader got with as many threads in the same rounds, median.
        bandwidth_best: the highest of them.
    """

    contender: str
    family: str
    bits: int
    arithmetic: str
    kernel: str
    group_size: int
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
    bandwidth_best: float

    @property
    def ours(self) -> bool:
        """Whether it is BcqMatMul."""
        return self.family == "bcq"

    @property
    def problem(self) -> Problem:
        """What contenders are compared on."""
        return Problem(self.rows, self.inputs, self.tokens, self.threads, self.cold)

    @property
    def bits_per_weight(self) -> float:
        """8 weight_bytes / (N K), scaling factors included."""
        return 8 * self.weight_bytes / (self.rows * self.inputs)

    @property
    def gigabytes_per_second(self) -> float:
        """weight_bytes / time: activations and outputs are not counted."""
        return self.weight_bytes / (self.microseconds * MICRO) / GIGA

    @property
    def share(self) -> float:
        """gigabytes_per_second / bandwidth: at 1 a product costs no more than reading its weights."""
        return self.gigabytes_per_second / self.bandwidth

    @property
    def floor(self) -> float:
        """Microseconds that reading the weights once takes at the measured bandwidth."""
        return self.weight_bytes / (self.bandwidth * GIGA) / MICRO


@dataclass(frozen=True)
class BenchResult:
    """All measurements of a run, in the order in which they were asked for.

    Attributes:
        machine: ``cpu``, ``cores``, ``isa``, ``library`` (version of this package), ``onnxruntime``, ...
        measurements: one per problem and contender.
        absent: contenders that did not take part, with the reason.
    """

    machine: dict[str, Any]
    measurements: tuple[Measurement, ...]
    absent: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain types, with the derived figures, for ``--json``."""
        rows = [{**asdict(m), **{name: getattr(m, name) for name in _DERIVED}} for m in self.measurements]
        return {"machine": self.machine, "measurements": rows, "absent": self.absent}

    def by_problem(self) -> list[list[Measurement]]:
        """The measurements of each problem."""
        return [list(group) for _, group in groupby(self.measurements, lambda m: m.problem)]


_DERIVED = ("bits_per_weight", "gigabytes_per_second", "share", "floor")


def fastest(measurements: Iterable[Measurement]) -> Measurement | None:
    """The one with the shortest median, or None."""
    return min(measurements, key=lambda m: m.microseconds, default=None)
