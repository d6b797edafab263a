# SPDX-License-Identifier: Apache-2.0
"""The fuzzer of readers finds what it is there for, and its changes reach what lies behind the parsers."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from bcq.errors import InputError, out_of_memory
from bcq.files.checkpoint import Checkpoint
from fuzz import seeds
from fuzz.mutate import changed
from fuzz.places import PLACES, Finding, Place, check_line

WEIGHTS = next(place for place in PLACES if place.file == "model/model.safetensors")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds") / "readers"
    seeds.make(folder)
    return folder


@pytest.mark.parametrize("number", range(len(PLACES)))
def test_every_seed_is_read(root: Path, number: int) -> None:
    place = PLACES[number]
    assert place.check(root, (root / place.file).read_bytes()) == ""


def test_the_file_is_as_before_after_a_check(root: Path) -> None:
    before = (root / WEIGHTS.file).read_bytes()
    assert WEIGHTS.check(root, before[:-1]) == "E103"
    assert (root / WEIGHTS.file).read_bytes() == before


def fails(error: Exception) -> Place:
    def read(file: Path) -> None:
        raise error

    return Place(WEIGHTS.file, "safetensors", read)


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), OSError("x"), InputError("E103", "something is wrong."), out_of_memory()],
    ids=["no reason", "no class", "no file", "too much memory"],
)
def test_whatever_is_no_proper_refusal_is_a_finding(root: Path, error: Exception) -> None:
    with pytest.raises((Finding, type(error))):
        fails(error).check(root, b"")


@pytest.mark.parametrize("text", ["two\nlines", "a\x00b", "\u2028", "x" * 3000])
def test_a_message_that_is_no_clean_line_is_a_finding(text: str) -> None:
    with pytest.raises(Finding):
        check_line(text)
    check_line(InputError("E103", text).message)


def test_other_bytes_than_the_library_reads_are_a_finding(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "raw", lambda self, name: b"\x00" * self.entry(name).nbytes)
    with pytest.raises(Finding, match="other bytes"):
        WEIGHTS.check(root, (root / WEIGHTS.file).read_bytes())


@pytest.mark.parametrize("form", ["json", "safetensors", "onnx", "lines"])
def test_changes_are_accepted_too_and_refused_behind_the_parser(root: Path, form: str) -> None:
    draw, codes = random.Random(3), Counter[str]()

    def cut(part: bytes) -> bytes:
        return part[: draw.randint(0, len(part))]

    for place in (place for place in PLACES if place.form == form):
        content = (root / place.file).read_bytes()
        codes.update(place.check(root, changed(form, content, draw, cut)) for _ in range(60))
    assert codes[""] > 0
    assert len(codes) >= {"lines": 2, "onnx": 3}.get(form, 4), codes
