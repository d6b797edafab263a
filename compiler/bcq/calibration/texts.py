# SPDX-License-Identifier: Apache-2.0
"""Calibration text from files: documents one after the other, never a whole file in memory."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from bcq.errors import InputError

_PACKED: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_SUFFIXES = (".txt", ".text", ".md", ".jsonl", ".ndjson")  # what is taken from a folder
_FORMS = "Give a .txt or .jsonl file in UTF-8 (also .xz, .gz, .bz2), or a folder of such files."


def documents(source: Path) -> Iterator[str]:
    """The documents of a text file, or of all text files of a folder in the order of their names.

    In ``.txt`` files empty lines part documents. A line of ``.jsonl`` is a document: a string, the field
    ``text`` of an object, or else all texts of the object.

    Raises:
        InputError: E101 when there is no such file or no text file in the folder, E102 for a line that is
            not JSON, E103 for bytes that are not UTF-8 or a damaged archive.
    """
    for file in _files(source):
        try:
            yield from _records(file) if _kind(file) in (".jsonl", ".ndjson") else _parts(_lines(file))
        except UnicodeDecodeError as fault:
            raise InputError("E103", f"'{file}' is not UTF-8 text ({fault.reason}).", _FORMS) from fault
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as fault:
            raise InputError("E103", f"'{file}' is damaged: {fault}.", "Pack it again.") from fault
        except OSError as fault:
            raise InputError("E101", f"'{file}' cannot be read: {fault.strerror or fault}.") from fault


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError("E101", f"the calibration text '{source}' does not exist.", _FORMS)
    found = sorted(path for path in source.rglob("*") if path.is_file() and _kind(path) in _SUFFIXES)
    if not found:
        raise InputError("E101", f"the folder '{source}' holds no text file.", _FORMS)
    return found


def _kind(file: Path) -> str:
    """The suffix without that of the packing."""
    return (file.with_suffix("") if file.suffix.lower() in _PACKED else file).suffix.lower()


def _lines(file: Path) -> Iterator[str]:
    opener = _PACKED.get(file.suffix.lower(), open)
    with cast("IO[str]", opener(file, "rt", encoding="utf-8")) as stream:
        yield from stream


def _parts(lines: Iterable[str]) -> Iterator[str]:
    """What stands between empty lines."""
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line)
        elif held:
            yield "".join(held).strip()
            held = []
    if held:
        yield "".join(held).strip()


def _records(file: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            text = _text_of(json.loads(line))
        except (ValueError, RecursionError) as fault:
            raise InputError(
                "E102", f"'{file}' line {number} is not valid JSON ({fault}).", _FORMS
            ) from fault
        if text.strip():
            yield text.strip()


def _text_of(record: object) -> str:
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise ValueError("expected a string or an object")
    if isinstance(record.get("text"), str):
        return str(record["text"])
    return " ".join(value for value in record.values() if isinstance(value, str))
