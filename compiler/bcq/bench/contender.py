# SPDX-License-Identifier: Apache-2.0
"""What takes part in the bench: a way to multiply, how exact it must be, and how its copies are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

# Classes of arithmetic, and what each may be off, relative to float64 (root mean square over the outputs).
ERRORS = {
    "float32": 1e-5,  # float32 activations and sums
    "near-exact": 1e-4,  # ops/README.md, accuracy_level 0
    "int8": 3e-2,  # int8 activations; this class is usually at about 1e-2
}


@dataclass(frozen=True)
class Weights:
    """One copy of a contender's weights.

    Attributes:
        tensors: by name, in the order in which the operator reads them.
        dense: makes the float32 ``[N, K]`` that they stand for.
    """

    tensors: dict[str, NDArray[Any]]
    dense: Callable[[], Float32]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: codes or elements, and scaling factors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Session(Protocol):
    """All copies, ready to run on given activations with a given number of threads."""

    def run(self) -> None:
        """Multiplies the activations by every copy once."""

    def output(self, copy: int) -> Float32:
        """The product ``[M, N]`` with one copy, of the last run."""


class Model(Protocol):
    """A contender's copies in its own format."""

    def session(self, a: Float32, threads: int) -> Session:
        """Binds activations ``[M, K]``."""


@dataclass(frozen=True)
class Contender:
    """One way to multiply.

    Attributes:
        name: as tables show it, unique in a run.
        family: whose it is: ``bcq``, ``onnxruntime``, ``openvino``, ``torch``, ``ggml``.
        bits: per weight, scales not counted.
        arithmetic: its class, a key of `ERRORS`.
        draw: makes the weights of one copy from a random generator.
        prepare: takes copies and an empty folder and makes a model of them.
        kernel: the name of our kernel, or an empty string.
        group_size: of ours; 0 for peers.
        spins: whether its idle threads spin for a while after any run.
        slow: it takes part only with one token and cached weights.
    """

    name: str
    family: str
    bits: int
    arithmetic: str
    draw: Callable[[np.random.Generator], Weights]
    prepare: Callable[[list[Weights], Path], Model]
    kernel: str = ""
    group_size: int = 0
    spins: bool = False
    slow: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is BcqMatMul."""
        return self.family == "bcq"

    def takes(self, tokens: int, cold: bool) -> bool:
        """Whether it takes part with that many rows of activations, and weights from memory or cached."""
        return not self.slow or (tokens == 1 and not cold)

    @property
    def error(self) -> float:
        """Largest relative error that its class of arithmetic may have."""
        return ERRORS[self.arithmetic]
