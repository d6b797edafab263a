# SPDX-License-Identifier: Apache-2.0
"""Who takes part at a shape, and who does not and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product

import numpy as np

from bcq.bench.contender import Contender
from bcq.bench.contenders import bcq, dense, nbits
from bcq.bench.ggml_peer import ggml
from bcq.bench.openvino_peer import openvino_int4
from bcq.bench.plan import Plan
from bcq.bench.scratch import scratch_folder
from bcq.bench.torch_peer import torch_int8
from bcq.runtime import one_line

LUT_ROWS = 128  # onnxruntime's look-up kernel takes multiples of this N
LUT_INPUTS = 32  # and of this K


@dataclass
class Roster:
    """Contenders at one shape.

    Attributes:
        contenders: in the order of tables.
        absent: reason by name.
    """

    contenders: list[Contender] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def roster(plan: Plan, rows: int, inputs: int) -> Roster:
    """Everybody whom the plan asks for and who can run on this machine."""
    found = Roster()
    _add_ours(found, plan, rows, inputs)
    if plan.peers == "none":
        return found
    found.contenders += _onnxruntime(rows, inputs, every=plan.peers == "all")
    for block in (32, 128) if plan.peers == "all" else (128,):
        _add_lut(found, rows, inputs, block)
    for name, make in _others(rows, inputs, every=plan.peers == "all"):
        try:
            found.contenders.append(make())
        except (ImportError, ValueError, OSError) as error:
            found.absent[name] = one_line(error)
    return found


def _add_ours(found: Roster, plan: Plan, rows: int, inputs: int) -> None:
    for arithmetic, weights, bits in product(plan.arithmetics, plan.weights, plan.bits):
        contender = bcq(rows, inputs, bits, plan.group_size, arithmetic, weights)
        same = _same_kernel(found, contender, weights)
        if same is not None:
            found.absent[contender.name] = f"{contender.kernel} computes it here, as in {same}"
        elif contender.kernel == "scalar" and any(c.kernel != "scalar" for c in found.contenders):
            found.absent[contender.name] = "only the scalar kernel computes it here"
        else:
            found.contenders.append(contender)


def _same_kernel(found: Roster, contender: Contender, weights: str) -> str | None:
    """Who runs the same kernel in another class: a kernel may always be more exact than is asked."""
    for other in found.contenders:
        alike = (other.kernel, other.bits) == (contender.kernel, contender.bits)
        if alike and other.arithmetic != contender.arithmetic and other.name.endswith(weights):
            return other.name
    return None


def _onnxruntime(rows: int, inputs: int, every: bool) -> Iterator[Contender]:
    yield dense(rows, inputs)
    if not every:
        yield nbits(rows, inputs, 2)
        yield nbits(rows, inputs, 4)
        yield nbits(rows, inputs, 4, 32)
        yield nbits(rows, inputs, 4, arithmetic="float32")
        yield nbits(rows, inputs, 8)
        return
    for bits, block, arithmetic in product((2, 4, 8), (32, 128), ("int8", "float32")):
        yield nbits(rows, inputs, bits, block, arithmetic)


def _others(rows: int, inputs: int, every: bool) -> Iterator[tuple[str, Callable[[], Contender]]]:
    """Peers of packages that may not be installed."""
    yield "torch int8 dynamic", lambda: torch_int8(rows, inputs)
    yield "OpenVINO 4-bit g=128", lambda: openvino_int4(rows, inputs)
    for kind in ("Q4_0", "Q2_K", "Q3_K", "TQ2_0") if every else ("Q4_0", "Q3_K"):
        yield f"ggml {kind}", lambda kind=kind: ggml(kind, rows, inputs)  # type: ignore[misc]


def _add_lut(found: Roster, rows: int, inputs: int, block: int) -> None:
    contender = nbits(rows, inputs, 2, block, lut=True)
    if rows % LUT_ROWS or inputs % LUT_INPUTS:
        found.absent[contender.name] = f"takes N of multiples of {LUT_ROWS} and K of {LUT_INPUTS}"
    elif not lut_is_used():
        found.absent[contender.name] = "onnxruntime has no look-up kernel for this CPU"
    else:
        found.contenders.append(contender)


@cache
def lut_is_used() -> bool:
    """Whether the session option changes anything here: other kernels round otherwise."""
    size = LUT_ROWS
    a = np.random.default_rng(0).standard_normal((1, size), dtype=np.float32)
    outputs = []
    for lut in (False, True):
        contender = nbits(size, size, 2, lut=lut)
        with scratch_folder() as folder:
            model = contender.prepare([contender.draw(np.random.default_rng(1))], folder)
            session = model.session(a, 1)
            session.run()
            outputs.append(session.output(0).copy())
    return not np.array_equal(*outputs)
