# SPDX-License-Identifier: Apache-2.0
"""Reads task data: jsonl or tab-separated lines, plain or xz; a bad line is named by file and number."""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bcq.errors import InputError
from bcq.tuning.options import SOURCE_FIELDS, TARGET_FIELDS, TuneOptions


@dataclass(frozen=True)
class Example:
    """One line of task data.

    Attributes:
        text: what the model is given.
        answers: texts that are right, or the label; the second text of ``similarity``; empty for ``distill``.
        score: of ``similarity``, scaled to 0 .. 1.
    """

    text: str
    answers: tuple[str, ...] = ()
    score: float = 0.0


def read_examples(path: Path, options: TuneOptions) -> list[Example]:
    """All examples of a file.

    Args:
        path: ``.jsonl`` (objects) or tab-separated text; either may be compressed (``.xz``).
        options: the task, the names of its fields, the range of its scores.

    Raises:
        InputError: E101 for a file that cannot be read, E103 for one that is not UTF-8 or xz, E102 for a line
            that is not what the task needs, or a file without a line.
    """
    is_json = path.name.removesuffix(".xz").endswith((".jsonl", ".json"))
    found = []
    for number, line in _lines(path):
        try:
            found.append(_from_json(line, options) if is_json else _from_tabs(line, options))
        except ValueError as fault:
            raise InputError("E102", f"{path}, line {number}: {fault}.") from fault
    if not found:
        raise InputError("E102", f"{path} has no examples.", "Give one example a line.")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, and their numbers from 1."""
    try:
        with _opened(path) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as fault:
        raise InputError("E103", f"'{path}' is not UTF-8 text or is cut short: {fault}.") from fault
    except OSError as fault:
        raise InputError("E101", f"'{path}' cannot be read: {fault.strerror or fault}.") from fault


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _from_json(line: str, options: TuneOptions) -> Example:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"it is not JSON ({fault})") from fault
    if not isinstance(entry, dict):
        raise ValueError(f"got a {type(entry).__name__}, expected an object")
    if options.task == "similarity":
        texts = [_text(entry, (name,)) for name in ("text1", "text2")]
        return Example(texts[0], (texts[1],), _score(_value(entry, ("score",)), options))
    source = _text(entry, (options.source,) if options.source else SOURCE_FIELDS)
    if options.task == "distill":
        return Example(source)
    names = (options.target,) if options.target else (*TARGET_FIELDS, "label")
    return Example(source, _answers(_value(entry, names)))


def _from_tabs(line: str, options: TuneOptions) -> Example:
    cells = line.split("\t")
    if options.task == "distill":
        return Example(cells[0])
    if options.task == "similarity":
        return _pair(cells, options)
    if len(cells) != 2 or not cells[0].strip() or not cells[1].strip():
        raise ValueError(
            f"got {len(cells)} columns, expected text TAB {'label' if _labels(options) else 'text'}"
        )
    return Example(cells[0], (cells[1],))


def _pair(cells: list[str], options: TuneOptions) -> Example:
    """Text, text, score in this order; or the score first, as SemEval's files have it."""
    if len(cells) < 3:
        raise ValueError(f"got {len(cells)} columns, expected text TAB text TAB score")
    if _is_number(cells[0]) and not _is_number(cells[2]):
        cells = [cells[1], cells[2], cells[0]]
    return Example(cells[0], (cells[1],), _score(cells[2], options))


def _labels(options: TuneOptions) -> bool:
    return options.task == "classification"


def _value(entry: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if name in entry:
            return entry[name]
    wanted = f"the field '{names[0]}'" if len(names) == 1 else f"one of the fields {', '.join(names)}"
    raise ValueError(f"got the fields {', '.join(map(str, entry)) or 'none'}, expected {wanted}")


def _text(entry: dict[str, Any], names: tuple[str, ...]) -> str:
    value = _value(entry, names)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"got {value!r} for the text, expected a string that is not empty")
    return value


def _answers(value: Any) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    found = [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in found]
    if not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise ValueError(f"got {value!r} for the answer, expected a string or a list of strings")
    return tuple(found)


def _score(value: Any, options: TuneOptions) -> float:
    low, high = options.score_range
    if isinstance(value, bool) or not _is_number(value) or not low <= float(value) <= high:
        raise ValueError(f"got {value!r} for the score, expected a number from {low:g} to {high:g}")
    return (float(value) - low) / (high - low)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
