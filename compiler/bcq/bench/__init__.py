# SPDX-License-Identifier: Apache-2.0
"""The kernel bench: BcqMatMul against its peers, in one interleaved run whose results are checked.

Names are imported when first used: the processes of `bcq.bench.end_to_end` need none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcq.bench.measure import run
    from bcq.bench.plan import Plan, Problem
    from bcq.bench.result import BenchResult, Measurement
    from bcq.bench.tables import to_markdown, to_table

__all__ = ["BenchResult", "Measurement", "Plan", "Problem", "run", "to_markdown", "to_table"]

_HOME = {"BenchResult": "result", "Measurement": "result", "Plan": "plan", "Problem": "plan",
         "run": "measure", "to_markdown": "tables", "to_table": "tables"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
