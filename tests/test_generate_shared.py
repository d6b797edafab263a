# SPDX-License-Identifier: Apache-2.0
"""One buffer as past and present: the tokens of a cache that grows, alone, in turns and in batches."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq.generation.cache import GrowingCache, SharedCache, slots
from bcq.generation.model import Model, load
from bcq.generation.runner import Context
from tiny_models import save

PROMPTS = [[3, 14, 15, 92, 65], [35], [89, 79, 3], [2, 38, 46, 26, 43, 38, 32, 79, 50]]
NEW = 20


@pytest.fixture(scope="module", params=["gpt2", "llama", "llama with int8"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Learned positions, and rotary ones with grouped heads, also with keys and values of int8."""
    family, _, cache = request.param.partition(" with ")
    root = tmp_path_factory.mktemp(family)
    heads_of_16 = {"hidden_size": 64} if family == "llama" else {}
    source = save(family, root / "model", **heads_of_16)
    options = {"kv_cache": cache} if cache else {}
    bcq.export(source, root / "out", bits=4, group_size=32, method="uniform", **options)
    opened = load(root / "out")
    assert opened.decoder.shares_buffer
    assert {slot.dtype for slot in slots(opened.session)} == {np.int8 if cache else np.float32}
    return opened


def alone(model: Model, prompt: list[int], growing: bool = False) -> list[int]:
    runner = model.start(prompt, NEW)
    if growing:
        runner._context = Context(GrowingCache(model.session))
    return list(runner.tokens())


def test_a_shared_buffer_gives_the_tokens_of_a_growing_cache(model: Model) -> None:
    for prompt in PROMPTS:
        assert alone(model, prompt) == alone(model, prompt, growing=True)


def test_a_buffer_that_is_too_small_grows_and_keeps_what_it_has(model: Model) -> None:
    runner = model.start(PROMPTS[0], NEW)
    runner._context = Context(SharedCache(model.session, 2, model.context_length))
    assert list(runner.tokens()) == alone(model, PROMPTS[0])


def test_answers_that_take_turns_do_not_disturb_each_other(model: Model) -> None:
    runners = [model.start(prompt, NEW) for prompt in PROMPTS]
    while not all(runner.answer.reason for runner in runners):
        for runner in runners:
            runner.step()
    assert [runner.answer.tokens for runner in runners] == [alone(model, prompt) for prompt in PROMPTS]


def test_rows_of_a_batch_have_the_tokens_that_they_have_alone(model: Model) -> None:
    assert model.generate_batch(PROMPTS, None, NEW) == [alone(model, prompt) for prompt in PROMPTS]
    longest = max(map(len, PROMPTS))
    # Rows that fill the model end when each has its last position; the mask then is longer than the context.
    full = model.generate_batch(PROMPTS, None, None)
    assert full == [model.generate(prompt, None) for prompt in PROMPTS]
    assert longest + max(map(len, full)) > model.context_length


def test_what_a_cache_has_of_a_prompt_is_not_computed_again(model: Model) -> None:
    context = model.context()
    first = model.start(PROMPTS[3], 4)
    first._context = context
    tokens = list(first.tokens())
    later = [*PROMPTS[3], *tokens, 7, 8]
    for prompt, known in ((later, len(PROMPTS[3]) + 3), ([*PROMPTS[3][:5], 9], 5), (later[:6], 5)):
        runner = model.start(prompt, 4)
        runner._context = context
        assert list(runner.tokens()) == model.generate(prompt, 4)
        assert runner.computed == len(prompt) - known + len(runner.answer.tokens) - 1


def test_a_prompt_in_parts_gives_the_same_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = alone(model, PROMPTS[3])
    monkeypatch.setattr("bcq.generation.decoder.PROMPT_CHUNK", 4)
    assert alone(model, PROMPTS[3]) == whole
    assert alone(model, PROMPTS[3], growing=True) == whole


def test_only_the_last_place_of_a_prompt_gets_logits(model: Model) -> None:
    cache = model.decoder.cache(16)
    feeds = np.array([PROMPTS[0]], np.int64)
    task = model.values(None)
    assert model.decoder.run_rows(feeds, np.ones_like(feeds), cache, task).shape == (1, model.vocabulary)
    assert cache.length == len(PROMPTS[0])
