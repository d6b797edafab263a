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
