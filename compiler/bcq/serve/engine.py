# SPDX-License-Identifier: Apache-2.0
"""What is served: a model, its tasks by name, and the jobs that a request becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bcq.errors import InputError, UsageError
from bcq.generation.conversation import write_down
from bcq.generation.model import Model
from bcq.generation.pieces import Pieces
from bcq.generation.runner import Runner
from bcq.generation.template import PlainForm, Template
from bcq.serve.limits import Limits
from bcq.serve.refusal import Refusal
from bcq.serve.request import Request

Begin = Callable[[], Runner]


@dataclass(frozen=True)
class Planned:
    """A request that can be run: what each answer begins with, and the tokens of all prompts."""

    begins: list[Begin]
    prompt_tokens: int


class Engine:
    """A model and the names under which its tasks are asked for.

    Args:
        model: the export.
        name: of the base.
        template: writes chats down.
        limits: for prompts and answers.

    Raises:
        UsageError: E202 when a task has the name of the base.
        InputError: E301 to E303 for a task that cannot run.
    """

    def __init__(self, model: Model, name: str, template: Template | PlainForm, limits: Limits) -> None:
        tasks = model.adapters()
        if name in tasks:
            raise UsageError("E202", f"--name '{name}' is also an adapter of this export.", "Choose another.")
        self.names = [name, *tasks]
        self._values = {name: model.values(None), **{task: model.values(task) for task in tasks}}
        self._model = model
        self._template = template
        self._limits = limits

    def plan(self, request: Request) -> Planned:
        """Checks a request against the model; computes nothing.

        Raises:
            Refusal: 404 for an unknown model, 400 for what cannot be answered.
        """
        if request.model not in self._values:
            raise unknown_model(request.model, self.names)
        try:
            prompts = self._prompts(request)
            begins = [
                self._begin(request, tokens, self._most(tokens, request), number)
                for tokens in prompts
                for number in range(request.count)
            ]
        except (UsageError, InputError) as fault:
            message = f"{fault.message} {fault.hint}".strip()
            raise Refusal(400, message, "invalid_value") from fault
        return Planned(begins, sum(map(len, prompts)))

    def _prompts(self, request: Request) -> list[list[int]]:
        if request.messages:
            return [write_down(self._model, self._template, request.messages)]
        return [self._model.encode(prompt) for prompt in request.prompts]

    def _most(self, tokens: list[int], request: Request) -> int:
        """Tokens of an answer: what was asked for, or what fits and is allowed."""
        limit = self._limits.prompt_tokens
        if limit and len(tokens) > limit:
            message = f"the prompt has {len(tokens)} tokens, this server takes {limit}."
            raise Refusal(400, message, "context_length_exceeded")
        try:
            return min(self._model.check_prompt(tokens, request.most), self._limits.new_tokens)
        except UsageError as fault:
            raise Refusal(400, f"{fault.message} {fault.hint}", "context_length_exceeded") from fault

    def _begin(self, request: Request, tokens: list[int], most: int, number: int) -> Begin:
        """Of several answers to one prompt, each has a seed of its own."""
        options = {**request.options, "seed": request.options["seed"] + number}
        chat = bool(request.messages)
        if chat:
            options["stop"] = [*options["stop"], *self._template.stops]
        pieces = Pieces(self._model.tokenizer, bare=True) if chat else self._model.pieces(tokens)
        answer = self._model.reply(tokens, most, pieces, **options)
        task = self._values[request.model]

        def begin() -> Runner:
            return self._model.runner(tokens, answer, task)

        return begin


def unknown_model(name: str, names: Sequence[str]) -> Refusal:
    """The refusal of a name that nothing has."""
    message = f"there is no model '{name[:80]}'; there are: {', '.join(names)}."
    return Refusal(404, message, "model_not_found", "model")
