# SPDX-License-Identifier: Apache-2.0
"""Many prompts at once, each with a task of its own.

Rows of one task run together; the tasks take turns, token by token, in one session. Each has a cache of
its own, so nothing is moved when it is another's turn. Why not one run for all:
``docs/decisions/0015-adapters.md``.

Plain attention gets all prompts in one run, padded on the left. Fused attention has the tokens of each row
from the left of its part of one buffer: each prompt runs into its part alone, then the rows run together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bcq.adapters.tasks import Task
from bcq.errors import UsageError
from bcq.generation.answer import Answer
from bcq.generation.cache import Cache, Feeds
from bcq.generation.decoder import Decoder

if TYPE_CHECKING:
    from bcq.generation.model import Model


def generate_batch(
    model: Model,
    prompts: Sequence[str | Sequence[int]],
    adapters: Sequence[Task] | None = None,
    max_new_tokens: int | None = 20,
    **options: Any,
) -> list[str | list[int]]:
    """Continues every prompt, as `Model.generate` would one by one.

    Args:
        model: an exported decoder.
        prompts: texts or lists of token ids.
        adapters: one task for each prompt, as in `Model.generate`; None for what `Model.use` has chosen.
        max_new_tokens: at most so many for each; an end token ends a row earlier.
        **options: as in `Model.generate`; every row draws from a generator of its own.

    Returns:
        The continuations in the order of the prompts: texts for texts, token ids for token ids.

    Raises:
        UsageError: E202 for a number of adapters that is not that of the prompts, and as `Model.generate`.
        InputError: as `Model.generate`.
    """
    chosen = [None] * len(prompts) if adapters is None else list(adapters)
    if len(chosen) != len(prompts):
        raise UsageError("E202", f"adapters: got {len(chosen)} for {len(prompts)} prompts, expected as many.")
    rows = [_Row.of(model, *model.answer(prompt, max_new_tokens, **options)) for prompt in prompts]
    groups = _by_task(rows, chosen) if max_new_tokens != 0 else []
    turns = [_steps(model.decoder, group, _fed(model, task, group)) for task, group in groups]
    while turns:
        turns = [turn for turn in turns if next(turn, None) is not None]
    return [
        row.text if isinstance(prompt, str) else row.answer.tokens
        for prompt, row in zip(prompts, rows, strict=True)
    ]


@dataclass
class _Row:
    """One prompt, what the decoder runs first, and what follows."""

    source: list[int]
    prompt: list[int]
    answer: Answer
    text: str = ""

    @classmethod
    def of(cls, model: Model, tokens: list[int], answer: Answer) -> _Row:
        """A row that has not begun."""
        return cls(tokens, model.first(tokens), answer)


def _fed(model: Model, task: Task, rows: Sequence[_Row]) -> Feeds:
    """What every run of some rows is fed beside tokens and cache."""
    return {**model.values(task), **model.memory([row.source for row in rows])}


def _by_task(rows: Sequence[_Row], tasks: Sequence[Task]) -> list[tuple[Task, list[_Row]]]:
    """Rows of one task side by side, in the order in which the tasks appear."""
    groups: dict[object, tuple[Task, list[_Row]]] = {}
    for row, task in zip(rows, tasks, strict=True):
        key = task if task is None or isinstance(task, str) else id(task)
        groups.setdefault(key, (task, []))[1].append(row)
    return list(groups.values())


def _steps(decoder: Decoder, rows: Sequence[_Row], task: Feeds) -> Iterator[bool]:
    """One token for each row of a task, each time that it is asked for; ends when all rows have ended."""
    begin = _begin_shared if decoder.shares_buffer else _begin_padded
    logits, mask, cache = begin(decoder, rows, task)
    while True:
        for row, scores in zip(rows, logits, strict=True):
            if not row.answer.reason:
                row.text += row.answer.take(scores)
        if all(row.answer.reason for row in rows):
            return
        yield True
        tokens = np.array([[(row.answer.tokens or row.prompt)[-1]] for row in rows], np.int64)
        going = [[int(row.answer.reason is None)] for row in rows]  # one that has ended stays at its place
        mask = np.concatenate([mask, np.array(going, np.int64)], axis=1)
        logits = decoder.run_rows(tokens, mask, cache, task)


Begun = tuple[Any, NDArray[np.int64], Cache]  # logits [rows, vocabulary], mask [rows, longest], cache


def _begin_padded(decoder: Decoder, rows: Sequence[_Row], task: Feeds) -> Begun:
    """All prompts in one run."""
    longest = max(len(row.prompt) for row in rows)
    tokens, mask = np.zeros((2, len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        tokens[place, longest - len(row.prompt) :] = row.prompt
        mask[place, longest - len(row.prompt) :] = 1
    cache = decoder.cache(longest, len(rows))
    return decoder.run_rows(tokens, mask, cache, task), mask, cache


def _begin_shared(decoder: Decoder, rows: Sequence[_Row], task: Feeds) -> Begun:
    """Each prompt into its own part of the buffer."""
    lengths = [len(row.prompt) for row in rows]
    cache = decoder.shared_cache(max(lengths) + max(row.answer.most for row in rows), len(rows))
    logits = [decoder.run(row.prompt, cache.row(place), task).copy() for place, row in enumerate(rows)]
    cache.length = max(lengths)
    mask = (np.arange(cache.length) < np.array(lengths)[:, None]).astype(np.int64)
    return logits, mask, cache
