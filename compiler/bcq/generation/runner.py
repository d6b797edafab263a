# SPDX-License-Identifier: Apache-2.0
"""One prompt on its way: a token each time that it is asked for one, so that many can take turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bcq.generation.answer import Answer
from bcq.generation.cache import Cache, Feeds
from bcq.generation.decoder import Decoder


class Context:
    """A cache and the tokens that are in it."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.tokens: list[int] = []

    def match(self, prompt: Sequence[int]) -> Sequence[int]:
        """Forgets what is no beginning of `prompt`; returns the tokens of it that are to be computed.

        At least the last one is, since its logits are needed.
        """
        known = 0
        for ours, theirs in zip(self.tokens, prompt[:-1], strict=False):
            if ours != theirs:
                break
            known += 1
        self.cache.keep(known)
        del self.tokens[known:]
        return prompt[known:]


class Runner:
    """Generates one answer.

    Args:
        decoder: the model.
        prompt: tokens, at least one.
        answer: what takes the logits.
        task: values of the task, see `bcq.generation.decoder.Decoder.constant`.
        context: what was computed before and may be the beginning of the prompt; it is used up from there on.

    Attributes:
        answer: tokens and text so far.
        prompt: the tokens of the prompt.
        computed: how many tokens were run through the model.
    """

    def __init__(
        self, decoder: Decoder, prompt: Sequence[int], answer: Answer, task: Feeds, context: Context
    ) -> None:
        self.answer = answer
        self.prompt = prompt
        self.computed = 0
        self._decoder = decoder
        self._task = task
        self._context = context
        self._next: Sequence[int] | None = None

    def step(self) -> str:
        """One token more, unless the answer has ended; returns the text that is sure now."""
        if self.answer.reason:
            return ""
        if self._next is None:
            self._next = self._begin()
        scores = self._decoder.run(self._next, self._context.cache, self._task)
        self.computed += len(self._next)
        self._context.tokens += self._next
        text = self.answer.take(scores)
        self._next = self.answer.tokens[-1:]
        return text

    def _begin(self) -> Sequence[int]:
        """The tokens that the decoder runs first."""
        return self._context.match(self.prompt)

    def tokens(self) -> Iterator[int]:
        """The ids of the answer, one by one."""
        while not self.answer.reason:
            before = len(self.answer.tokens)
            self.step()
            yield from self.answer.tokens[before:]

    def texts(self) -> Iterator[str]:
        """The text of the answer, piece by piece."""
        while not self.answer.reason:
            piece = self.step()
            if piece:
                yield piece
