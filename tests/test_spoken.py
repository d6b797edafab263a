# SPDX-License-Identifier: Apache-2.0
"""Errors of the public functions speak of arguments; the same errors on the command line of options."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import bcq
from bcq import cli
from bcq.errors import UsageError
from bcq.spoken import in_python, translated


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--bits: got 9, expected 1 to 8.", "bits: got 9, expected 1 to 8."),
        ("--group-size: got 1", "group_size: got 1"),
        ("--set 'h.*=4' matches no matrix.", "overrides=['h.*=4'] matches no matrix."),
        ("kept by --set", "kept by overrides"),
        ("kept by --no-embeddings", "kept by embeddings=False"),
        ("`bcq inspect` lists them all; --allow-partial accepts it.", None),
        ("Run it as `bcq export m -o out --bits 3`.", "Run it as `bcq export m -o out --bits 3`."),
        ("Use 'bcq bench --cost-table FILE'.", "Use 'bcq bench --cost-table FILE'."),
        ("Run: pip install --upgrade onnxruntime", "Run: pip install --upgrade onnxruntime"),
        ("a -- b, a-b, ---", "a -- b, a-b, ---"),
        ("", ""),
    ],
)  # fmt: skip
def test_options_become_arguments_and_commands_stay(text: str, expected: str | None) -> None:
    wanted = "`bcq inspect` lists them all; allow_partial=True accepts it." if expected is None else expected
    assert translated(text) == wanted


def test_a_public_function_names_the_argument_and_the_command_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"^error\[E202\]: group_size: got the group size 33"):
        bcq.quantize(tmp_path, group_size=33)
    assert cli.main(["quantize", str(tmp_path), "-o", str(tmp_path / "out"), "--group-size", "33"]) == 2
    assert "--group-size: got the group size 33" in capsys.readouterr().err


def test_public_functions_keep_signature_documentation_and_identity() -> None:
    from bcq.api import export

    assert bcq.export is bcq.export
    assert inspect.signature(bcq.export) == inspect.signature(export)
    assert bcq.export.__doc__ == export.__doc__


def test_what_is_no_error_of_ours_and_results_pass_unchanged() -> None:
    assert in_python(divmod)(7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        in_python(divmod)(1, 0)
