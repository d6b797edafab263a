# SPDX-License-Identifier: Apache-2.0
"""Text generation with an exported encoder-decoder: the prompt is read once, the answer stands on its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.adapters.tasks import Feeds, Task
from bcq.errors import UnsupportedError
from bcq.generation.answer import Answer
from bcq.generation.described import ENCODER_DECODER_FILE, begin_token
from bcq.generation.model import Model, check_count
from bcq.generation.pieces import Pieces
from bcq.generation.runner import Runner

MASK = "encoder_attention_mask"


class EncoderDecoder(Model):
    """An exported encoder-decoder such as T5.

    It generates as any `bcq.generation.model.Model`, but an answer does not continue its prompt: the encoder
    reads the prompt, whole, and the decoder begins with a token of its own.

    Args:
        folder: where it lies.
        session: of the decoder's graph.
        config: the contents of ``encoder_decoder_config.json``.
        encoder: session of the encoder's graph.

    Attributes:
        encoder: as given.
        begin: the token that every answer begins with, and that is no part of it.
    """

    continues = False
    description = ENCODER_DECODER_FILE

    def __init__(self, folder: Path, session: Any, config: dict[str, Any], encoder: Any) -> None:
        super().__init__(folder, session, config)
        self.encoder = encoder
        self.begin = begin_token(folder / ENCODER_DECODER_FILE, config)
        self._outputs = [value.name for value in encoder.get_outputs()]

    def memory(self, prompts: Sequence[Sequence[int]]) -> Feeds:
        """The encoder's result for some prompts, which run together.

        Args:
            prompts: token ids of each, at least one.

        Returns:
            What the decoder is fed of them at each step: keys and values of each layer ``[prompts, heads,
            longest, head_size]`` and their mask, int64 ``[prompts, longest]``.
        """
        tokens, mask = np.zeros((2, len(prompts), max(map(len, prompts))), np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        results = self.encoder.run(None, {"input_ids": tokens, "attention_mask": mask})
        return {MASK: mask, **dict(zip(self._outputs, results, strict=True))}

    def runner(self, tokens: Sequence[int], answer: Answer, task: Feeds) -> Runner:
        """See `bcq.generation.model.Model.runner`."""
        return _Runner(self, tokens, answer, task)

    def first(self, prompt: Sequence[int]) -> list[int]:
        """See `bcq.generation.model.Model.first`."""
        return [self.begin]

    def pieces(self, prompt: Sequence[int]) -> Pieces:
        """See `bcq.generation.model.Model.pieces`."""
        return Pieces(self.tokenizer)

    def check_prompt(self, prompt: Sequence[int], max_new_tokens: int | None) -> int:
        """See `bcq.generation.model.Model.check_prompt`; positions are relative, so any length will do."""
        return self.context_length if max_new_tokens is None else check_count(max_new_tokens)

    def logits(
        self,
        tokens: NDArray[np.int64],
        past: dict[str, NDArray[Any]],
        mask: NDArray[np.int64],
        adapter: Task = None,
    ) -> Any:
        """Refused: an encoder-decoder has no logits of a text alone.

        Raises:
            UnsupportedError: E401.
        """
        raise UnsupportedError(
            "E401",
            f"{self.folder} is an encoder-decoder: it does not continue texts, and has no perplexity of one.",
            "Use generate, or `bcq run`.",
        )


class _Runner(Runner):
    """Reads the prompt with the encoder before the first token."""

    def __init__(self, model: EncoderDecoder, prompt: Sequence[int], answer: Answer, task: Feeds) -> None:
        super().__init__(model.decoder, prompt, answer, task, model.context(1, answer.most))
        self._model = model

    def _begin(self) -> Sequence[int]:
        self.computed += len(self.prompt)
        self._task = {**self._task, **self._model.memory([self.prompt])}
        return [self._model.begin]
