# SPDX-License-Identifier: Apache-2.0
"""Perplexity: the window protocol and its arithmetic, on models whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bcq import evaluate
from bcq.errors import InputError, UsageError

VOCABULARY = 7


def uniform(tokens: Sequence[int]) -> NDArray[Any]:
    return np.zeros((len(tokens), VOCABULARY), dtype=np.float32)


def successor(tokens: Sequence[int]) -> NDArray[Any]:
    """Is sure that token t + 1 follows token t."""
    logits = np.full((len(tokens), VOCABULARY), -50.0, dtype=np.float32)
    logits[np.arange(len(tokens)), (np.asarray(tokens) + 1) % VOCABULARY] = 50.0
    return logits


def test_a_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    found = evaluate.measure(uniform, [0, 1, 2, 3, 4], window=5)
    assert found.perplexity == pytest.approx(VOCABULARY, rel=1e-12)  # float64 throughout


def test_a_sure_and_right_model_has_perplexity_one() -> None:
    tokens = [number % VOCABULARY for number in range(20)]
    found = evaluate.measure(successor, tokens, window=6)
    assert found.perplexity == pytest.approx(1.0, abs=1e-12)
    assert found.top_1 == 1.0


def test_each_window_predicts_all_but_its_first_token() -> None:
    seen: list[list[int]] = []

    def spy(tokens: Sequence[int]) -> NDArray[Any]:
        seen.append(list(tokens))
        return uniform(tokens)

    found = evaluate.measure(spy, [0, 1, 2, 3, 4, 5, 6], window=3)
    assert seen == [[0, 1, 2], [3, 4, 5]]  # the last window has one token: nothing to predict
    assert found.tokens == 4
    assert found.losses.shape == found.guesses.shape == (4,)


def test_a_last_shorter_window_counts() -> None:
    assert [list(part) for part in evaluate.windows([1, 2, 3, 4, 5], 3)] == [[1, 2, 3], [4, 5]]


def test_limit_measures_the_first_windows_only() -> None:
    assert evaluate.measure(uniform, list(range(7)), window=2, limit=2).tokens == 2


def test_loss_is_minus_log_softmax_of_the_target() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1000.0]], dtype=np.float32)
    first, second = evaluate.negative_log_likelihood(logits, [0, 2])
    expected = math.log(math.exp(1) + math.exp(2) + math.exp(3)) - 1
    assert first == pytest.approx(expected, rel=1e-12)
    assert second == 0.0  # does not overflow


def test_a_nan_logit_gives_a_nan_perplexity() -> None:
    def broken(tokens: Sequence[int]) -> NDArray[Any]:
        return np.full((len(tokens), VOCABULARY), np.nan, dtype=np.float32)

    assert math.isnan(evaluate.measure(broken, [0, 1, 2], window=3).perplexity)


def test_a_text_of_one_token_is_refused() -> None:
    with pytest.raises(InputError, match="has 1 tokens"):
        evaluate.measure(uniform, [0], window=4)


@pytest.mark.parametrize("window", [1, 0, -3, 257])
def test_a_window_outside_the_context_is_refused(window: int) -> None:
    with pytest.raises(UsageError, match="expected 2 to 256"):
        evaluate.window_for(256, window)


def test_the_default_window_is_the_context_up_to_a_limit() -> None:
    assert evaluate.window_for(256) == 256
    assert evaluate.window_for(131_072) == evaluate.MAX_WINDOW


def test_a_text_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"abc\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8 text: byte 3"):
        evaluate.read_text(tmp_path / "image")
    with pytest.raises(InputError, match="missing"):
        evaluate.read_text(tmp_path / "missing")


def test_plain_values_leave_out_what_stands_for_every_token() -> None:
    values = evaluate.measure(uniform, [0, 1, 2], window=3).to_dict()
    assert set(values) == {"perplexity", "tokens", "window", "top_1"}
