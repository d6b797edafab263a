# SPDX-License-Identifier: Apache-2.0
"""Generation and sampling, on a stand-in session whose next token is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq.errors import InputError, UnsupportedError, UsageError
from bcq.generation.model import Model, load
from counting_model import VOCABULARY, Counting, model


def test_greedy_tokens_follow_the_largest_logit() -> None:
    assert model(Counting()).generate([2, 3], max_new_tokens=4) == [4, 5, 6, 7]


def test_generation_stops_at_the_end_token_and_leaves_it_out() -> None:
    assert model(Counting()).generate([6], max_new_tokens=20) == [7, 8]


def test_the_prompt_runs_once_and_then_each_token_alone_with_the_cache() -> None:
    session = Counting()
    model(session).generate([1, 2, 3], max_new_tokens=3)
    assert [feeds["input_ids"].shape for feeds in session.feeds] == [(1, 3), (1, 1), (1, 1)]
    assert [feeds["past_key_values.0.key"].shape[2] for feeds in session.feeds] == [0, 3, 4]
    assert [feeds["attention_mask"].shape[1] for feeds in session.feeds] == [3, 4, 5]
    assert session.feeds[-1]["position_ids"].tolist() == [[4]]


def test_a_model_without_position_inputs_gets_none() -> None:
    session = Counting(positions=False)
    model(session).generate([1], max_new_tokens=1)
    assert "position_ids" not in session.feeds[0]


def test_streaming_gives_the_same_tokens_one_at_a_time() -> None:
    stream = model(Counting()).stream([2], max_new_tokens=3)
    assert next(stream) == 3
    assert list(stream) == [4, 5]


def test_asking_for_no_tokens_runs_nothing() -> None:
    session = Counting()
    assert model(session).generate([2], max_new_tokens=0) == []
    assert session.feeds == []


@pytest.mark.parametrize(
    ("prompt", "count", "reason"),
    [
        ([], 1, "empty"),
        ([10], 1, r"token id 10, expected 0 to 9 \(the model has 10 tokens\)"),
        ([1.0], 1, "token id 1.0"),
        (["a"], 1, "token id 'a'"),
        (np.zeros((1, 2), np.int64), 1, "ndarray"),
        (None, 1, "NoneType"),
        ([1], 1.0, "max_new_tokens: got 1.0"),
        ([1], "1", "max_new_tokens: got '1'"),
        ([1], True, "max_new_tokens: got True"),
        ([-1], 1, "token id -1"),
        ([1], -1, "max_new_tokens"),
        ([1, 2], 31, "32 positions"),
    ],
)
def test_a_prompt_that_cannot_run_is_refused_before_any_work(prompt: Any, count: Any, reason: str) -> None:
    session = Counting()
    with pytest.raises(UsageError, match=reason) as caught:
        model(session).generate(prompt, max_new_tokens=count)
    assert caught.value.code == "E202"
    with pytest.raises(UsageError):
        model(session).stream(prompt, max_new_tokens=count)
    assert session.feeds == []


def test_a_text_prompt_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        model(Counting(), folder=tmp_path).generate("text")


@pytest.mark.parametrize(
    "sampling",
    [{"top_k": 2.5}, {"top_k": "2"}, {"seed": None}, {"seed": 1.0}, {"temperature": "1"}, {"top_p": None}],
)
def test_sampling_options_of_another_type_are_refused(sampling: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(sampling))) as caught:
        model(Counting()).generate([1], max_new_tokens=1, **{"temperature": 1, **sampling})
    assert caught.value.code == "E202"


def test_half_a_surrogate_pair_in_a_prompt_is_refused_with_its_place() -> None:
    text = model(Counting())
    text._tokenizer = object()
    with pytest.raises(UsageError, match="udc80' at position 2") as caught:
        text.generate("ab\udc80")
    assert caught.value.code == "E202"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({}, "model: got None"),
        ({"model": []}, "model"),
        ({"model": {"vocab_size": 10}}, r"model\.context_length: got None"),
        ({"model": {"context_length": "x", "vocab_size": 10}}, r"model\.context_length: got 'x'"),
        ({"model": {"context_length": 8, "vocab_size": 0}}, r"model\.vocab_size: got 0"),
        ({"model": {"context_length": 8, "vocab_size": 11}}, r"model\.vocab_size: got 11, expected 10"),
        ({"model": {"context_length": 8, "vocab_size": 10, "eos_token_id": "e"}}, r"model\.eos_token_id"),
    ],
)
def test_a_wrong_configuration_is_refused_with_file_and_key(config: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key) as caught:
        Model(Path("folder"), Counting(), config)
    assert caught.value.code == "E102"
    assert "genai_config.json" in str(caught.value)


def test_text_in_gives_text_out_and_streams_whole_characters(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    pieces = {character: number for number, character in enumerate("abcdefghij")}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(pieces, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    made.save(str(tmp_path / "tokenizer.json"))
    text = model(Counting(), folder=tmp_path)
    assert text.generate("bc", max_new_tokens=3) == "def"
    assert list(text.stream("bc", max_new_tokens=3)) == ["d", "e", "f"]


def test_loading_a_folder_that_is_not_there_or_no_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "absent")
    with pytest.raises(InputError, match="is a folder without a model, expected the folder of an export"):
        load(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UnsupportedError, match=r"no decoder.*Run its model with bcq\.session"):
        load(tmp_path)


def test_how_weights_are_held_and_the_profile_reach_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def session(folder: Path, **options: object) -> Counting:
        asked.append((folder, options))
        return Counting()

    monkeypatch.setattr("bcq.runtime.session", session)
    described = {"context_length": 8, "vocab_size": VOCABULARY}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": described}), encoding="utf-8")
    load(tmp_path, weights="mapped", profile="p.jsonl")
    assert asked == [
        (tmp_path, {"with_library": True, "weights": "mapped", "profile": "p.jsonl", "bits": None})
    ]
