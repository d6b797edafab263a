# SPDX-License-Identifier: Apache-2.0
"""The key-value cache of some rows: it stays with ONNX Runtime from one run to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bcq.errors import UnsupportedError

PAST, PRESENT = "past_key_values.", "present."
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
KINDS = {**FLOATS, "tensor(int8)": np.int8}  # of a cache
Feeds = dict[str, NDArray[Any]]  # by the names of inputs


@dataclass(frozen=True)
class Slot:
    """One tensor of the cache: ``[rows, heads, tokens, width]``."""

    name: str
    heads: int
    width: int
    dtype: Any

    @property
    def present(self) -> str:
        """The output that continues it."""
        return PRESENT + self.name.removeprefix(PAST)

    def empty(self, rows: int, tokens: int = 0) -> NDArray[Any]:
        """An array that holds no token and has room for some."""
        return np.zeros((rows, self.heads, tokens, self.width), self.dtype)


def slots(session: Any) -> list[Slot]:
    """The cache inputs of a session, in its order.

    Raises:
        UnsupportedError: E401 for a cache of another type than float32, float16 or int8.
    """
    found = [value for value in session.get_inputs() if value.name.startswith(PAST)]
    odd = next((value for value in found if value.type not in KINDS), None)
    if odd is not None:
        raise UnsupportedError(
            "E401", f"{odd.name}: got a cache of {odd.type}, expected one of {', '.join(KINDS)}."
        )
    return [Slot(value.name, value.shape[1], value.shape[3], KINDS[value.type]) for value in found]


class Cache(Protocol):
    """Keys and values of the tokens that a model has seen.

    Attributes:
        length: how many tokens that are, padding included.
    """

    length: int

    def run(self, feeds: Feeds, constant: Feeds, new: int) -> NDArray[Any]:
        """Runs the model on `new` tokens more.

        Args:
            feeds: tokens and mask.
            constant: what every run is fed besides, the same dictionary each time.
            new: how many tokens.

        Returns:
            Logits ``[rows, new or 1, vocabulary]``; the next run may write over them.
        """

    def keep(self, length: int) -> None:
        """Forgets all but the first `length` tokens."""


class GrowingCache:
    """What a run returns is what the next one is fed: nothing is copied, ONNX Runtime makes new tensors."""

    def __init__(self, session: Any, rows: int = 1) -> None:
        self.length = 0
        self._session = session
        self._slots = slots(session)
        self._outputs = ["logits", *(slot.present for slot in self._slots)]
        self._past: Feeds = {slot.name: slot.empty(rows) for slot in self._slots}

    @property
    def past(self) -> Feeds:
        """Keys and values ``[rows, heads, tokens, width]`` by the names of the inputs."""
        return self._past

    def run(self, feeds: Feeds, constant: Feeds, new: int) -> NDArray[Any]:
        """See `Cache`."""
        # Arrays are the memory of a run's tensors, in both directions: OrtValues would only cost time.
        results: list[NDArray[Any]] = self._session.run(self._outputs, {**feeds, **constant, **self._past})
        self._past = {slot.name: array for slot, array in zip(self._slots, results[1:], strict=True)}
        self.length += new
        return results[0]

    def keep(self, length: int) -> None:
        """See `Cache`; this is the one operation that copies."""
        if length < self.length:
            self._past = {name: array[:, :, :length].copy() for name, array in self._past.items()}
            self.length = length


class SharedCache:
    """One buffer is past and present: a run writes its tokens into it.

    Args:
        session: of a graph with fused attention, whose configuration allows it.
        room: tokens that there is room for at first; it doubles when it is not enough.
        most: tokens that there can be.
        rows: prompts side by side; each has its tokens from the left, so masks are padded on the right.
    """

    def __init__(self, session: Any, room: int, most: int, rows: int = 1) -> None:
        self.length = 0
        self._session = session
        self._slots = slots(session)
        self._most = most
        self._rows = rows
        self._binding = session.io_binding()
        self._one: NDArray[Any] | None = None
        self._constant: Feeds | None = None
        outputs = {value.name: value for value in session.get_outputs()}
        self._logits = (outputs["logits"].shape[-1], FLOATS[outputs["logits"].type])
        self._make(min(max(room, 1), most))

    def row(self, index: int) -> SharedCache:
        """The cache of one row, in the same memory; it is of no use once this one has grown."""
        one = SharedCache(self._session, 1, self._room)
        one._bind(self._room, {name: array[index : index + 1] for name, array in self._arrays.items()})
        return one

    def run(self, feeds: Feeds, constant: Feeds, new: int) -> NDArray[Any]:
        """See `Cache`."""
        self._reserve(self.length + new)
        if constant is not self._constant:
            self._constant = constant
            for name, array in constant.items():  # some are optional inputs, which go in as OrtValues only
                self._binding.bind_ortvalue_input(name, value_of(array))
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, array)
        if new == 1:
            logits = self._bind_one()
            self._session.run_with_iobinding(self._binding)
        else:
            self._one = None
            self._binding.bind_output("logits", "cpu")
            self._session.run_with_iobinding(self._binding)
            logits = self._result().numpy()
        self.length += new
        return logits

    def keep(self, length: int) -> None:
        """See `Cache`: what lies behind the length is never read."""
        self.length = min(length, self.length)

    def _bind_one(self) -> NDArray[Any]:
        """The array that gets the logits of a single token: bound until a longer run takes its place."""
        if self._one is None:
            width, dtype = self._logits
            self._one = np.empty((self._rows, 1, width), dtype)
            self._binding.bind_ortvalue_output("logits", value_of(self._one))
        return self._one

    def _result(self) -> Any:
        """The logits of a run that has made them itself: the last output to be bound."""
        outputs = self._binding.get_outputs()
        return next(value for value in outputs if len(value.shape()) == 3)

    def _reserve(self, length: int) -> None:
        if length > self._room:
            self._make(min(max(length, 2 * self._room), self._most))

    def _make(self, room: int) -> None:
        """Buffers of this room, with the tokens that there are."""
        arrays = {slot.name: slot.empty(self._rows, room) for slot in self._slots}
        for name, array in arrays.items() if self.length else ():
            array[:, :, : self.length] = self._arrays[name][:, :, : self.length]
        self._bind(room, arrays)

    def _bind(self, room: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Makes these the past and the present of every run, until the next time."""
        self._room, self._arrays = room, arrays
        for slot in self._slots:
            value = value_of(arrays[slot.name])
            self._binding.bind_ortvalue_input(slot.name, value)
            self._binding.bind_ortvalue_output(slot.present, value)


def value_of(array: NDArray[Any]) -> Any:
    """An OrtValue over the memory of an array."""
    import onnxruntime  # the rest of this package serves decoders that run without it, too

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
