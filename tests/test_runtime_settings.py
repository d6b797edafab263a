# SPDX-License-Identifier: Apache-2.0
"""bcq.weights and bcq.profile are read while the library is registered; wrong values are refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bcq import contract, runtime
from bcq.errors import UsageError
from bcq.runtime import default_options, register_library, session
from nodes import one_node, random_weight


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCQ_WEIGHTS", raising=False)
    monkeypatch.delenv("BCQ_PROFILE", raising=False)


def registered(**entries: str) -> str:
    """The mark that registering leaves in session options with entries ``bcq.<name>``."""
    options = default_options()
    for name, value in entries.items():
        options.add_session_config_entry(f"bcq.{name}", value)
    register_library(options)
    return str(options.get_session_config_entry("bcq.registered"))


def test_an_entry_chooses_how_weights_are_held() -> None:
    assert registered(weights="resident").startswith("weights=resident ")
    assert registered(weights="mapped").startswith("weights=mapped ")
    assert registered(weights="auto").startswith("weights=auto ")
    assert registered(weights="") == registered() == registered(weights="auto")


def test_the_environment_variable_wins_over_the_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCQ_WEIGHTS", "mapped")
    assert registered(weights="resident").startswith("weights=mapped ")
    monkeypatch.setenv("BCQ_WEIGHTS", "")
    assert registered(weights="resident").startswith("weights=resident ")


@pytest.mark.parametrize("value", ["Resident", "huge", "mapped ", "x" * 5000, "a\nb"])
def test_an_unknown_way_of_holding_weights_is_named(value: str) -> None:
    shown = value.replace("\n", "?")[:200]
    with pytest.raises(UsageError) as caught:
        registered(weights=value)
    assert f"bcq.weights: got '{shown}', expected auto, mapped or resident" in str(caught.value)


def test_an_unknown_way_in_the_environment_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCQ_WEIGHTS", "cached")
    with pytest.raises(UsageError, match="BCQ_WEIGHTS: got 'cached', expected auto, mapped or resident"):
        registered(weights="mapped")


def test_settings_that_change_after_the_first_registration_are_refused() -> None:
    options = default_options()
    options.add_session_config_entry("bcq.weights", "mapped")
    register_library(options)
    register_library(options)
    options.add_session_config_entry("bcq.weights", "resident")
    with pytest.raises(UsageError, match=r"Set bcq\.weights and bcq\.profile before that"):
        register_library(options)


def test_a_profile_is_a_new_or_old_regular_file_named_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "profile.jsonl"
    assert registered(profile=str(path)).endswith(f"profile={path}")
    assert path.read_bytes() == b""
    path.write_bytes(b'{"node": 1}\n')
    registered(profile=str(path))
    assert path.read_bytes() == b'{"node": 1}\n'


@pytest.mark.parametrize("text", [b"{}\n", b'{"node":', b"precious\n", b"\0"])
def test_a_file_that_holds_something_else_is_never_appended_to(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=r"this one holds something else than a profile"):
        registered(profile=str(path))
    assert path.read_bytes() == text


def test_a_hard_link_is_no_profile(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"")
    (tmp_path / "p.jsonl").hardlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match=r"has other names: a hard link"):
        registered(profile=str(tmp_path / "p.jsonl"))


def test_a_relative_profile_without_a_current_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(UsageError, match=r"expected an absolute path, since there is no current folder"):
        registered(profile="p.jsonl")


def test_a_relative_profile_lies_in_the_folder_of_the_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert registered(profile="p.jsonl").endswith(f"profile={tmp_path / 'p.jsonl'}")


@pytest.mark.parametrize("name", ["profile.txt", ".jsonl", ".bashrc", "p.jsonl/"])
def test_a_profile_of_another_name_is_refused_and_nothing_is_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"bcq\.profile: got '.*', expected a file name that ends in \.jsonl"
    ):
        registered(profile=f"{tmp_path}/{name}" if name != ".jsonl" else name)
    assert list(tmp_path.iterdir()) == []


def test_a_profile_never_follows_a_link_and_is_no_device_or_folder(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"keep")
    (tmp_path / "link.jsonl").symlink_to(target)
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("link.jsonl", "folder.jsonl", "pipe.jsonl", "none/p.jsonl"):
        with pytest.raises(UsageError, match=r"expected a regular file that can be written"):
            registered(profile=str(tmp_path / name))
    assert target.read_bytes() == b"keep"


@pytest.mark.parametrize("argument", [{"weights": "huge"}, {"profile": "x.txt"}])
def test_a_wrong_argument_of_a_session_is_a_wrong_use(argument: dict[str, Any], tmp_path: Path) -> None:
    model = one_node(contract.MATMUL, random_weight(16, 32, 1, 32))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    ((name, value),) = argument.items()
    with pytest.raises(UsageError) as caught:
        session(tmp_path, **argument)
    assert (caught.value.code, caught.value.exit_code) == ("E202", 2)
    assert caught.value.message.startswith(f"bcq.{name}: got '{value}', expected ")


def test_options_that_have_the_library_are_not_registered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime keeps a handle of the library for each time, as long as the options live."""
    options = default_options()
    register_library(options)
    calls: list[Path] = []
    monkeypatch.setattr(runtime, "check_whole", calls.append)
    register_library(options)
    assert calls == []
    register_library(default_options())
    monkeypatch.setenv("BCQ_WEIGHTS", "auto")
    register_library(options)
    assert len(calls) == 2
