# SPDX-License-Identifier: Apache-2.0
"""Pieces of text, stop strings and the limits of an answer, on tokenizers of every common kind."""

from __future__ import annotations

from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from bcq.errors import UsageError
from bcq.generation.pieces import Pieces
from bcq.generation.stops import Stops
from bcq.generation.text import open_tokenizer
from counting_model import Counting, model

LETTERS = {character: number for number, character in enumerate("abcdefghij")}


def byte_level() -> Any:
    """The demo model's: byte-level pairs, as GPT-2, OPT, Llama 3 and Qwen have them."""
    with as_file(files("bcq") / "demo_model") as folder:
        return open_tokenizer(folder)


def metaspace() -> Any:
    """As Llama 2, Mistral and Gemma have them: a word begins with a bar, unknown characters become bytes."""
    words = ["<unk>", "<s>", "▁the", "▁a", "cat", "s", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({word: n for n, word in enumerate(words)}, []))
    made.add_special_tokens(["<s>"])
    parts = tokenizers.decoders
    made.decoder = parts.Sequence(
        [parts.Replace("▁", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
    )
    return made


def word_piece() -> Any:
    """As BERT has them: what goes on with a word begins with two signs; spaces are tidied."""
    words = ["[UNK]", "the", "cat", "##s", "##ing", ".", "n", "'", "t", "do", ",", "!"]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({word: n for n, word in enumerate(words)}))
    made.decoder = tokenizers.decoders.WordPiece("##", cleanup=True)
    return made


KINDS = {"byte_level": byte_level(), "metaspace": metaspace(), "word_piece": word_piece()}


def told(tokenizer: Any, prompt: list[int], tokens: list[int]) -> list[str]:
    pieces = Pieces(tokenizer, prompt)
    return [*(pieces.push(token) for token in tokens), pieces.rest()]


def some_tokens(kind: str) -> st.SearchStrategy[list[int]]:
    """Any tokens; bytes of a metaspace tokenizer only as whole characters.

    It decodes a row of byte tokens at once, and shows each as unreadable where the last one makes no
    character: that cannot be known when the first ones are told.
    """
    tokenizer = KINDS[kind]
    if kind == "byte_level":
        return st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=24)
    words = [token for text, token in tokenizer.get_vocab().items() if not text.startswith("<0x")]
    whole = st.characters(codec="utf-8").map(
        lambda c: [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in c.encode()]
    )
    units = st.lists(st.sampled_from(words).map(lambda token: [token]) | whole, max_size=12)
    return units.map(lambda lists: [token for tokens in lists for token in tokens])


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_prompt_and_pieces_join_to_what_all_tokens_decode_to(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]
    prompt, tokens = data.draw(some_tokens(kind)), data.draw(some_tokens(kind))
    before = tokenizer.decode(prompt)
    expected = tokenizer.decode(prompt + tokens)
    # The bytes at the end of an arbitrary prompt may be half a character, which the answer then completes.
    assert (before.rstrip("\ufffd") + "".join(told(tokenizer, prompt, tokens))).startswith(
        expected.rstrip("\ufffd")
    )


@pytest.mark.parametrize("text", ["naïve 日本語 🙂👩‍👩‍👧 café", "a\u0301b", "tail 🙂"])
def test_no_piece_ends_within_a_character(text: str) -> None:
    tokenizer = KINDS["byte_level"]
    pieces = told(tokenizer, [], tokenizer.encode(text).ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_told_at_the_end() -> None:
    tokenizer = KINDS["metaspace"]
    half = tokenizer.token_to_id("<0xE2>")
    assert told(tokenizer, [], [half, half]) == ["", "", "\ufffd\ufffd"]


def test_a_first_word_keeps_the_space_that_stands_between_it_and_the_prompt() -> None:
    tokenizer = KINDS["metaspace"]
    the, a = tokenizer.token_to_id("▁the"), tokenizer.token_to_id("▁a")
    assert told(tokenizer, [the], [a, the]) == [" a", " the", ""]
    assert told(tokenizer, [], [a, the]) == ["a", " the", ""]


def test_a_word_that_goes_on_is_joined_and_tidied_spaces_lose_no_text() -> None:
    tokenizer = KINDS["word_piece"]
    ids = [tokenizer.token_to_id(word) for word in ("the", "cat", "##s", ".", "do", "n", "'", "t")]
    assert told(tokenizer, [], ids[:4]) == ["the", " cat", "s", ".", ""]
    assert "".join(told(tokenizer, [], ids)).replace(" ", "") == "thecats.don't"


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
@settings(deadline=None)
def test_text_passes_up_to_the_first_stop_string_however_it_is_cut(text: str, strings: list[str]) -> None:
    places = [place for place in map(text.find, strings) if place >= 0]
    expected = text[: min(places)] if places else text
    for cuts in (range(0, len(text) + 1, 3), [0, len(text)]):
        ends = [*cuts, len(text)]
        stops = Stops(strings)
        passed = "".join(stops.push(text[begin:end]) for begin, end in pairwise(ends)) + stops.rest()
        # Of two stop strings, the one that is complete first ends the text.
        assert stops.found == bool(places)
        assert expected.startswith(passed) if places else passed == expected


def test_a_text_ends_before_its_stop_string_and_ids_with_the_token_that_completes_it(tmp_path: Path) -> None:
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel(LETTERS, unk_token="a"))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    letters.decoder = tokenizers.decoders.Fuse()
    letters.save(str(tmp_path / "tokenizer.json"))
    counting = model(Counting(), folder=tmp_path)
    assert counting.generate("a", stop="ef") == "bcd"
    assert list(counting.stream("a", stop=["ef", "x"])) == ["b", "c", "d"]
    assert counting.generate([0], stop="ef") == [1, 2, 3, 4, 5]
    assert counting.generate("a", 5, stop="gh") == "bcdef"
    runner = counting.start("a", 5, stop="fz")
    assert "".join(runner.texts()) == "bcdef"
    assert runner.answer.reason == "length"
    runner = counting.start("a", stop="d")
    assert "".join(runner.texts()) == "bc"
    assert runner.answer.reason == "stop"
    assert counting.generate_batch(["a", "b"], stop="e") == ["bcd", "cd"]


@pytest.mark.parametrize("stop", ["", [""], [1], ["a", None]])
def test_a_stop_string_that_is_empty_or_no_text_is_refused(stop: Any) -> None:
    with pytest.raises(UsageError, match="stop: got"):
        model(Counting()).generate([1], stop=stop)
