# SPDX-License-Identifier: Apache-2.0
"""A bench's measurements of BcqMatMul as a cost table."""

from __future__ import annotations

from collections.abc import Iterator

from bcq.bench.contenders import LEVELS, kernel_name
from bcq.bench.cost_table import CACHE, MEMORY, Cost, CostTable
from bcq.bench.result import BenchResult, Measurement


def cost_table(result: BenchResult) -> CostTable:
    """Every measurement of ours, once for each accuracy_level that the same kernel computes."""
    ours = [m for m in result.measurements if m.ours]
    bandwidth = {str(m.threads): round(m.bandwidth, 2) for m in ours}
    machine = {**result.machine, "read_gigabytes_per_second": bandwidth}
    return CostTable(machine, tuple(cost for m in ours for cost in _costs(m)))


def _costs(m: Measurement) -> Iterator[Cost]:
    for arithmetic, level in sorted(LEVELS.items(), key=lambda pair: pair[1]):
        kernel = kernel_name(m.rows, m.inputs, m.bits, m.group_size, level, m.tokens)
        if m.arithmetic != arithmetic and (kernel != m.kernel or m.arithmetic != "near-exact"):
            continue
        yield Cost(
            rows=m.rows,
            inputs=m.inputs,
            bits=m.bits,
            group_size=m.group_size,
            tokens=m.tokens,
            accuracy_level=level,
            threads=m.threads,
            weights=MEMORY if m.cold else CACHE,
            kernel=m.kernel,
            bytes=m.weight_bytes,
            microseconds=m.microseconds,
            low=m.low,
            high=m.high,
            best=m.best,
        )
