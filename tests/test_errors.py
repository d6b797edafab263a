# SPDX-License-Identifier: Apache-2.0
"""Messages are one clean line, whatever a file says."""

from __future__ import annotations

import json

import pytest

from bcq.errors import InputError, one_line


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("two\nlines\tor\u00a0three", "two lines or three"),
        ("\x1b[31mred\x00", "?[31mred?"),
        ("half \ud800", "half ?"),
        ("ärger 文字", "ärger 文字"),
    ],
)
def test_what_no_terminal_should_get_is_replaced(said: str, told: str) -> None:
    fault = InputError("E103", said, said)
    assert (fault.message, fault.hint, fault.args) == (told, told, (told,))
    json.dumps(str(fault)).encode()


def test_of_a_long_message_the_beginning_and_the_end_are_kept() -> None:
    told = one_line(f"tensor '{'x' * 10**6}': got 3, expected 4.")
    assert told.startswith("tensor 'xxx")
    assert told.endswith("x': got 3, expected 4.")
    assert len(told) < 1100
