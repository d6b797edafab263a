# SPDX-License-Identifier: Apache-2.0
"""A conversation: what was said stays in the cache, so that each turn computes only what is new."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from bcq.adapters.tasks import Task
from bcq.errors import UsageError
from bcq.generation.answer import Reason
from bcq.generation.model import Model
from bcq.generation.pieces import Pieces
from bcq.generation.runner import Runner
from bcq.generation.sampling import Sampling
from bcq.generation.stops import Stops
from bcq.generation.template import Message, PlainForm, Template
from bcq.generation.text import tokenize


class Conversation:
    """Turns of a user and a model.

    Each turn is written down by the template as a whole, as it would be in training; the tokens that the
    cache already has at its beginning are not computed again.

    Args:
        model: an exported decoder with a tokenizer.
        template: how messages are written down.
        system: what the model is told first; empty for nothing.
        adapter: the task of the whole conversation.
        **options: ``stop`` and the fields of `Sampling`.

    Attributes:
        messages: everything that was said.
        computed: tokens that the last turn ran through the model.
        reason: why the last answer ended; None when it was stopped.
    """

    def __init__(
        self,
        model: Model,
        template: Template | PlainForm,
        system: str = "",
        adapter: Task = None,
        stop: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self._model = model
        self._template = template
        self._system = system
        self._stops = (*template.stops, *stop)
        self._options = options
        self._task = model.values(adapter)
        Stops(self._stops)
        Sampling(**options)  # refused now, not at the first turn
        require_chat(model)
        self.clear()

    def clear(self) -> None:
        """Forgets everything that was said."""
        self.messages: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        self._context = self._model.context()
        self.computed = 0
        self.reason: Reason | None = None

    def say(self, text: str, max_new_tokens: int | None = None) -> Generator[str]:
        """The answer to what the user says, piece by piece; leaving off early keeps what was told.

        Raises:
            UsageError: E202 when the conversation no longer fits the model; it then is as it was before.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        prompt = write_down(self._model, self._template, asked)
        most = self._room(len(prompt), max_new_tokens)
        pieces = Pieces(self._model.tokenizer, bare=True)
        answer = self._model.reply(prompt, most, pieces, self._stops, **self._options)
        runner = Runner(self._model.decoder, prompt, answer, self._task, self._context)
        return self._told(runner, asked)

    def _told(self, runner: Runner, asked: list[Message]) -> Generator[str]:
        said = ""
        try:
            for piece in runner.texts():
                said += piece
                yield piece
        finally:
            self.messages = [*asked, {"role": "assistant", "content": said}]
            self.computed = runner.computed
            self.reason = runner.answer.reason

    def _room(self, prompt: int, max_new_tokens: int | None) -> int:
        room = self._model.context_length - prompt
        if room < 1:
            raise UsageError(
                "E202",
                f"the conversation has {prompt} tokens, the model {self._model.context_length} positions.",
                "Begin a new one: /clear.",
            )
        return room if max_new_tokens is None else min(room, max_new_tokens)


def write_down(model: Model, template: Template | PlainForm, messages: Sequence[Message]) -> list[int]:
    """The tokens of a conversation, up to where the model is to answer.

    Raises:
        InputError: E102 when the template refuses the messages; as `Model.tokenizer`.
        UsageError: as `require_chat`.
    """
    require_chat(model)
    return tokenize(model.tokenizer, template.render(messages), special=False)


def require_chat(model: Model) -> None:
    """Raises UsageError E203 for an encoder-decoder, whose answers continue nothing."""
    if not model.continues:
        raise UsageError(
            "E203",
            "this model is an encoder-decoder: it answers one text and holds no conversation.",
            "Use `bcq run`, or completions of `bcq serve`.",
        )
