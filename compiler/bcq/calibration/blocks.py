# SPDX-License-Identifier: Apache-2.0
"""The repeated blocks of any transformers model, and what the model hands to each beside hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bcq.errors import BcqError, UnsupportedError

_STATES = "hidden_states"
_PROBE_TOKENS = 4
Replacement = Callable[[int, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Call:
    """How the model calls a block: all arguments but the hidden states, which stand first or have a name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: bool

    def shape(self) -> list[Any]:
        """What the arguments are: types, and sizes of tensors."""
        return [_shape(value) for value in (self.args, sorted(self.kwargs.items()))]

    def for_training(self) -> Call:
        """The same with tensors that a gradient may pass by; those of a model that was only run may not."""
        return Call(_copied(self.args), _copied(self.kwargs), self.named)


class _ReachedError(Exception):
    """A place in the model behind which nothing matters."""


class Blocks:
    """The longest list of blocks that hold matrices, in a model that is run piece by piece.

    Args:
        model: a transformers model whose weights outside the blocks are there when these are run.

    Raises:
        UnsupportedError: E401 when there is no such list, or its blocks cannot be run one after the other.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        model.config.use_cache = False
        self.name, self.items = self._longest()
        self._extra = (
            0  # what a block returns in a tuple behind the hidden states; -1 when it returns no tuple
        )
        self._probe()

    @property
    def head(self) -> nn.Module | None:
        """The output embeddings, when the model has them."""
        found: nn.Module | None = self.model.get_output_embeddings()
        return found

    def front(self, ids: torch.Tensor) -> tuple[torch.Tensor, list[Call]]:
        """Runs the model up to its first block.

        Args:
            ids: int64 ``[windows, tokens]``.

        Returns:
            Hidden states ``[windows, tokens, hidden]`` of the first block, and how every block is called.
        """
        states: list[torch.Tensor] = []
        calls: list[Call] = []

        def note(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given, call = _split(args, kwargs)
            states.append(given)
            calls.append(call)
            if len(calls) == len(self.items):
                raise _ReachedError
            return self._returned(given)

        self._run(ids, note)
        return states[0], calls

    def run(self, number: int, states: torch.Tensor, call: Call) -> torch.Tensor:
        """Runs one block on hidden states; several threads may do so."""
        with torch.inference_mode():
            return self.output(number, states, call)

    def output(self, number: int, states: torch.Tensor, call: Call) -> torch.Tensor:
        """What `run` gives, with gradients where they are on and the call is `Call.for_training`."""
        if call.named:
            returned = self.items[number](**{_STATES: states}, **call.kwargs)
        else:
            returned = self.items[number](states, *call.args, **call.kwargs)
        result: torch.Tensor = returned[0] if isinstance(returned, tuple) else returned
        return result

    def tail(self, ids: torch.Tensor, states: torch.Tensor, begin: Callable[[], None]) -> None:
        """Runs what comes behind the blocks, up to the product with the output embeddings.

        Args:
            ids: as for :meth:`front`.
            states: what the last block gave.
            begin: called where the tail begins.
        """

        def pass_through(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if number < len(self.items) - 1:
                return self._returned(_split(args, kwargs)[0])
            begin()
            return self._returned(states)

        self._run_to_head(ids, pass_through)

    def _run_to_head(self, ids: torch.Tensor, replacement: Replacement) -> None:
        def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _ReachedError

        handle = self.head.register_forward_pre_hook(stop) if self.head is not None else None
        try:
            self._run(ids, replacement)
        finally:
            if handle is not None:
                handle.remove()

    def _run(self, ids: torch.Tensor, replacement: Replacement) -> None:
        """Runs the model with something else in place of each block."""
        for number, block in enumerate(self.items):
            block.forward = _numbered(number, replacement)
        try:
            with torch.inference_mode():
                self.model(input_ids=ids)
        except _ReachedError:
            pass
        finally:
            for block in self.items:
                del block.forward

    def _longest(self) -> tuple[str, nn.ModuleList]:
        found: dict[str, nn.ModuleList] = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) and all(map(_has_matrices, module))
        }
        if not found:
            raise self._unsupported("it has no list of blocks with matrices")
        name = max(found, key=lambda name: len(found[name]))  # the first of the longest
        return name, found[name]

    def _probe(self) -> None:
        """Finds out what a block returns, and that blocks run in order, once, and hand on states alone."""
        ids = torch.arange(_PROBE_TOKENS)[None]
        second: list[Call] = []
        order: list[int] = []

        def first_is_real(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if number == 0:
                returned = type(self.items[0]).forward(self.items[0], *args, **kwargs)
                self._extra = len(returned) - 1 if isinstance(returned, tuple) else -1
                return returned
            second.append(_split(args, kwargs)[1])
            raise _ReachedError

        def note_order(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            order.append(number)
            return self._returned(_split(args, kwargs)[0])

        try:
            self._run_to_head(ids, first_is_real)
            self._run_to_head(ids, note_order)
            calls = self.front(ids)[1]
        except BcqError:
            raise
        except Exception as fault:  # whatever a model does that wants more than token ids
            reason = " ".join(str(fault).split())[:160]
            raise self._unsupported(f"it does not run on token ids alone ({reason})") from fault
        if order != list(range(len(self.items))):
            raise self._unsupported(f"it runs its {len(self.items)} blocks in the order {order}")
        if second and second[0].shape() != calls[1].shape():
            raise self._unsupported("its blocks hand on more than hidden states")

    def _returned(self, states: torch.Tensor) -> Any:
        """States in the form in which a block returns them."""
        return states if self._extra < 0 else (states, *([None] * self._extra))

    def _unsupported(self, reason: str) -> UnsupportedError:
        return UnsupportedError(
            "E401",
            f"{type(self.model).__name__} cannot be calibrated: {reason}.",
            "Leave out --calibrate: every model can be quantized without text.",
        )


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, Call]:
    """Hidden states, and the rest of a call."""
    if args:
        return args[0], Call(args[1:], kwargs, named=False)
    rest = {name: value for name, value in kwargs.items() if name != _STATES}
    return kwargs[_STATES], Call((), rest, named=True)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def _numbered(number: int, replacement: Replacement) -> Callable[..., Any]:
    return lambda *args, **kwargs: replacement(number, args, kwargs)


def _has_matrices(block: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in block.parameters())


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return ("tensor", *value.shape)
    if isinstance(value, list | tuple):
        return [_shape(item) for item in value]
    return type(value).__name__ if value is not None else None
