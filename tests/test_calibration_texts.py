# SPDX-License-Identifier: Apache-2.0
"""Text from files in every form, cut into batches without padding; what cannot be used is said clearly."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="calibrating needs the packages for compiling")

import transformers

from bcq.calibration import CalibrationOptions
from bcq.calibration.texts import documents
from bcq.calibration.tokens import BATCH_TOKENS, read_tokens
from bcq.errors import BcqError, InputError, UsageError
from tiny_tokenizer import save_tokenizer, text


@pytest.fixture
def config() -> object:
    return transformers.LlamaConfig(vocab_size=100, max_position_embeddings=64)


def test_empty_lines_part_documents(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\none\ntwo\n\n \nthree")
    assert list(documents(file)) == ["one\ntwo", "three"]


def test_packed_text_reads_like_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one\n\ntwo"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo"))
    for file in tmp_path.iterdir():
        assert list(documents(file)) == ["one", "two"]


def test_a_line_of_jsonl_is_a_document(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    records = ["one", {"text": "two", "id": "x"}, {"input": "a b", "score": 1, "target": "c"}]
    file.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    assert list(documents(file)) == ["one", "two", "a b c"]


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    assert list(documents(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.txt", b"caf\xe9", "E103"),
        ("a.txt.xz", b"no archive", "E103"),
        ("a.txt.gz", b"no archive", "E103"),
        ("a.jsonl", b"{", "E102"),
        ("a.jsonl", b"3", "E102"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as caught:
        list(documents(tmp_path / name))
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["missing.txt", "empty"])
def test_a_text_that_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name) as caught:
        list(documents(tmp_path / name))
    assert caught.value.code == "E101"


def options(
    tmp_path: Path, words: int = 2000, windows: int = 8, tokens: int | None = None, seed: int = 0
) -> CalibrationOptions:
    (tmp_path / "text.txt").write_text(text(words, seed))
    return CalibrationOptions(tmp_path / "text.txt", windows, tokens)


def test_decoders_get_windows_of_equal_length_over_the_whole_text(tmp_path: Path, config: object) -> None:
    chosen = options(tmp_path, words=2000, windows=40, tokens=16)
    folder = save_tokenizer(tmp_path / "model")
    found = read_tokens(folder, config, True, 64, chosen)
    assert found.total == 40 * 16
    rows = np.concatenate(found.batches)
    everything = read_tokens(folder, config, True, 64, options(tmp_path, windows=1000, tokens=16))
    np.testing.assert_array_equal(rows[-1], np.concatenate(everything.batches)[-1])
    assert (np.concatenate(everything.batches) == 0).sum() > 20  # each document begins with <bos>
    assert all(batch.size <= BATCH_TOKENS for batch in found.batches)


def test_encoders_get_lines_without_padding(tmp_path: Path, config: object) -> None:
    found = read_tokens(save_tokenizer(tmp_path / "model"), config, False, 64, options(tmp_path, tokens=10))
    assert {batch.shape[1] for batch in found.batches} <= {
        5,
        10,
    }  # lines of 12 words are cut, short ones stay
    assert 80 <= found.total < 100


def test_the_digest_depends_on_every_id_and_on_the_shape(tmp_path: Path, config: object) -> None:
    folder = save_tokenizer(tmp_path / "model")
    found = {
        read_tokens(folder, config, True, 64, options(tmp_path, tokens=16)).digest,
        read_tokens(folder, config, True, 64, options(tmp_path, tokens=32)).digest,
        read_tokens(folder, config, True, 64, options(tmp_path, tokens=16, seed=1)).digest,
    }
    assert len(found) == 3
    assert read_tokens(folder, config, True, 64, options(tmp_path, tokens=16)).digest in found


def test_a_short_text_is_one_window(tmp_path: Path, config: object) -> None:
    found = read_tokens(save_tokenizer(tmp_path / "model"), config, True, 64, options(tmp_path, words=40))
    assert [batch.shape for batch in found.batches] == [(1, 41)]


def test_what_cannot_be_tokenized_is_said(tmp_path: Path, config: object) -> None:
    folder = save_tokenizer(tmp_path / "model")

    def refused(**changes: object) -> BcqError:
        chosen = options(tmp_path, **changes)  # type: ignore[arg-type]  # numbers
        with pytest.raises(BcqError) as caught:
            read_tokens(folder, config, True, 64, chosen)
        return caught.value

    assert "has 0 tokens" in refused(words=0).message
    assert "at most 64" in refused(tokens=65).message
    config.vocab_size = 50  # type: ignore[attr-defined]
    assert "gives the id" in refused().message
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "no tokenizer" in refused().message


def test_wide_matrices_get_more_windows_by_default() -> None:
    chosen = CalibrationOptions(Path("text.txt"))
    assert [chosen.windows(512, widest) for widest in (64, 4096, 11008)] == [32, 48, 128]
    assert CalibrationOptions(Path("text.txt"), 7).windows(512, 11008) == 7


@pytest.mark.parametrize(
    "changes",
    [{"calibration_windows": 0}, {"calibration_tokens": 1}, {"workers": 0}, {"scheduler": "host:8786"}],
)
def test_options_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(changes)).replace("_", "-")) as caught:
        CalibrationOptions(Path("text.txt"), **changes)  # type: ignore[arg-type]
    assert caught.value.code == "E202"
