# SPDX-License-Identifier: Apache-2.0
"""How the next token is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bcq.errors import UsageError
from bcq.generation.sampling import candidates, chooser


def test_temperature_zero_takes_the_likeliest() -> None:
    assert chooser()(np.array([0.1, 3.0, 2.0])) == 1


def test_equal_seeds_draw_equal_tokens_and_other_seeds_others() -> None:
    logits = np.zeros(1000, np.float32)
    draws = [[chooser(temperature=1.0, seed=seed)(logits) for _ in range(1)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_candidates_are_the_likeliest_and_their_probabilities_sum_to_one() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
    tokens, probabilities = candidates(logits, 1.0, top_k=3, top_p=1.0)
    assert tokens.tolist() == [1, 3, 2]
    np.testing.assert_allclose(probabilities, np.array([4, 3, 2]) / 9)
    tokens, _ = candidates(logits, 1.0, top_k=0, top_p=0.5)
    assert tokens.tolist() == [1, 3]  # 0.4 alone does not reach 0.5
    tokens, _ = candidates(logits, 1.0, top_k=0, top_p=1e-9)
    assert tokens.tolist() == [1]


def test_a_tiny_temperature_or_huge_logits_do_not_overflow() -> None:
    logits = np.array([3e38, 3e38, -3e38], np.float32)
    tokens, probabilities = candidates(logits, 1e-6, top_k=0, top_p=1.0)
    assert tokens.tolist() == [0, 1, 2]
    assert probabilities.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    "option", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"seed": -1}]
)
def test_a_sampling_option_out_of_range_is_named(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        chooser(**option)


def test_min_p_keeps_what_is_nearly_as_likely_as_the_likeliest() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.26, 0.14]))
    tokens, probabilities = candidates(logits, 1.0, top_k=0, top_p=1.0, min_p=0.5)
    assert tokens.tolist() == [1, 2]
    np.testing.assert_allclose(probabilities, [0.5 / 0.76, 0.26 / 0.76])


def test_top_p_over_many_tokens_is_that_of_sorting_all_of_them() -> None:
    scores = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    for top_p in (0.01, 0.3, 0.95):
        order = np.argsort(-scores, kind="stable")
        weights = np.exp(scores[order].astype(np.float64))
        before = np.cumsum(weights) - weights
        expected = order[before < top_p * weights.sum()]
        assert candidates(scores, 1.0, 0, top_p)[0].tolist() == expected.tolist()


def test_a_repetition_penalty_lowers_what_prompt_and_answer_have() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1])
    choose = chooser([0], repetition_penalty=1.2)
    assert choose(logits) == 1  # 2 / 1.2 is less than 1.9
    assert choose(logits) == 0  # then 1.9 / 1.2 is less than 2 / 1.2
    negative = np.array([-1.0, -1.1])
    assert chooser([0], repetition_penalty=1.2)(negative) == 1  # -1 * 1.2 is less than -1.1


def test_presence_and_frequency_penalties_count_the_answer_alone() -> None:
    logits = np.array([1.0, 0.8])
    present = chooser([0], presence_penalty=0.3)
    assert [present(logits) for _ in range(4)] == [0, 1, 0, 0]
    often = chooser([0], frequency_penalty=0.15)
    assert [often(logits) for _ in range(4)] == [0, 0, 1, 0]


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    torch = pytest.importorskip("torch", reason="the reference is transformers")
    transformers = pytest.importorskip("transformers", reason="the reference is transformers")
    scores = np.random.default_rng(1).normal(size=50).astype(np.float32)
    prompt = [3, 7, 7, 20]
    process = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    expected = process(torch.tensor([prompt]), torch.tensor(scores)[None])[0].numpy()
    made = chooser(prompt, repetition_penalty=1.7)._penalized(scores)
    np.testing.assert_allclose(made, expected, rtol=1e-6)  # float32 against float64


@pytest.mark.parametrize(
    "option",
    [
        {"min_p": -0.1}, {"min_p": 2}, {"repetition_penalty": 0}, {"presence_penalty": 3},
        {"frequency_penalty": -3}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"seed": True},
    ],
)  # fmt: skip
def test_a_further_option_out_of_range_is_named(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        chooser(**option)
