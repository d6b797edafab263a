# SPDX-License-Identifier: Apache-2.0
"""Tasks of a decoder: a text, or a label, follows a text. The loss is that of the answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bcq.errors import InputError
from bcq.tuning.data import Example
from bcq.tuning.options import TuneOptions

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Sequences:
    """Token ids of examples; the first ``given[i]`` of example i are not predicted."""

    tokens: list[list[int]]
    given: list[int]

    def __len__(self) -> int:
        return len(self.tokens)


class LanguageTask:
    """Text in, text out.

    Args:
        tokenizer: of the base, a ``tokenizers.Tokenizer``.
        end: token that ends an answer.
        context: most tokens of an example.
        options: separator and task.
        examples: training data, whose labels a classification knows.
    """

    def __init__(
        self, tokenizer: Any, end: int, context: int, options: TuneOptions, examples: Sequence[Example]
    ) -> None:
        self._tokenizer, self._end = tokenizer, end
        self._context = min(context, options.max_length or context)
        known = tokenizer.token_to_id("<sep>") is not None
        self.separator = options.separator or ("<sep>" if known else "\n")
        self._is_labels = options.task == "classification"
        self.labels = sorted({example.answers[0] for example in examples}) if self._is_labels else []
        self._training = self._sequences(examples)

    def __len__(self) -> int:
        return len(self._training)

    def sizes(self) -> list[int]:
        """Tokens of each training example."""
        return list(map(len, self._training.tokens))

    def notes(self) -> dict[str, Any]:
        """What somebody who uses the adapter has to know."""
        return {"separator": self.separator, **({"labels": self.labels} if self._is_labels else {})}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """None of its own."""
        return {}

    def prompt(self, text: str) -> list[int]:
        """Token ids that stand before an answer."""
        return [*self._tokenizer.encode(text).ids, *self._tokenizer.encode(self.separator).ids]

    def loss(self, model: Any, indices: Sequence[int]) -> torch.Tensor:
        """Mean negative log-likelihood of the answers' tokens of some training examples, in nats."""
        tokens = [self._training.tokens[i] for i in indices]
        losses = answer_losses(
            model, Sequences(tokens, [self._training.given[i] for i in indices]), self._end
        )
        return torch.cat(losses).mean()

    @torch.no_grad()
    def evaluate(self, model: Any, examples: Sequence[Example]) -> dict[str, float]:
        """``nll``: mean over all tokens of all answers; ``accuracy`` for labels."""
        losses = [float(x) for one in self._losses(model, self._sequences(examples)) for x in one]
        found = {"nll": sum(losses) / len(losses)}
        if self._is_labels:
            found["accuracy"] = self._accuracy(model, examples)
        return found

    def _accuracy(self, model: Any, examples: Sequence[Example]) -> float:
        right = 0
        for example in examples:
            tried = [Example(example.text, (label,)) for label in self.labels]
            scores = [float(one.sum()) for one in self._losses(model, self._sequences(tried))]
            right += self.labels[scores.index(min(scores))] == example.answers[0]
        return right / len(examples)

    def _losses(self, model: Any, sequences: Sequences) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        order = sorted(range(len(sequences)), key=lambda i: len(sequences.tokens[i]))  # little padding
        for start in range(0, len(order), EVALUATION_BATCH):
            part = order[start : start + EVALUATION_BATCH]
            batch = Sequences([sequences.tokens[i] for i in part], [sequences.given[i] for i in part])
            found += answer_losses(model, batch, self._end)
        return [found[order.index(i)] for i in range(len(order))] if self._is_labels else found

    def _sequences(self, examples: Sequence[Example]) -> Sequences:
        tokens, given = [], []
        for example in examples:
            start = self.prompt(example.text)
            for answer in example.answers:
                whole = [*start, *self._tokenizer.encode(answer).ids, self._end]
                if len(whole) > self._context:
                    raise InputError(
                        "E102",
                        f"an example has {len(whole)} tokens, expected at most {self._context}: "
                        f"'{example.text[:60]}'.",
                        "Shorten it, leave it out, or raise --max-length if the model's context allows.",
                    )
                tokens.append(whole)
                given.append(len(start))
        return Sequences(tokens, given)


def answer_losses(model: Any, batch: Sequences, padding: int) -> list[torch.Tensor]:
    """Negative log-likelihoods of the tokens that are predicted, one tensor an example.

    The head computes logits at these places only: that of a small model costs as much as all its layers.
    """
    width = max(map(len, batch.tokens))
    ids = torch.tensor([row + [padding] * (width - len(row)) for row in batch.tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch.tokens])
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    places = [slice(given - 1, len(row) - 1) for row, given in zip(batch.tokens, batch.given, strict=True)]
    chosen = torch.cat([hidden[i, place] for i, place in enumerate(places)])
    logits = model.get_output_embeddings()(chosen).float()
    targets = torch.cat([ids[i, place.start + 1 : place.stop + 1] for i, place in enumerate(places)])
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return list(losses.split([place.stop - place.start for place in places]))
