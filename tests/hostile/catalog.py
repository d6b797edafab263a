# SPDX-License-Identifier: Apache-2.0
"""All hostile models by family: for both operators and formats, where a case translates for MatMulNBits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from hostile import activations, attributes, datafiles, graphs, tensors
from hostile.case import Case, Generator
from hostile.subjects import ALL

GENERATORS: dict[str, Generator] = {
    "attributes": attributes.cases,
    "tensors": tensors.cases,
    "activations": activations.cases,
    "graphs": graphs.cases,
    "external data": datafiles.cases,
}


def cases(group: str, selection: str = "all") -> Iterator[Case]:
    """The cases that one generator makes.

    Args:
        group: a key of `GENERATORS`.
        selection: ``all`` operators, ``ours`` alone, or ``quick``: every second of BcqMatMul and
            every sixth of BcqGather and of format version 2, since all share the code that reads a node.
    """
    steps = {"BcqMatMul": 2, "BcqGather": 6, "BcqMatMul nested": 6} if selection == "quick" else {}
    for subject in (made() for made in ALL):
        if selection == "all" or subject.domain == "bcq":
            yield from islice(GENERATORS[group](subject), 0, None, steps.get(subject.title, 1))
