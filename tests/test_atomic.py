# SPDX-License-Identifier: Apache-2.0
"""Output folders: whole, or as they were."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bcq.errors import ResourceError, UsageError
from bcq.files import atomic
from bcq.files.atomic import AtomicFolder, check_apart
from bcq.files.manifest import NAME, write_manifest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path, text: str) -> None:
    with AtomicFolder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "text").write_text(text)
        write_manifest(folder, ["bcq"], 0)


def text_of(folder: Path) -> str:
    return (folder / "sub" / "text").read_text()


def test_a_new_folder_appears_with_its_files(tmp_path: Path) -> None:
    write(tmp_path / "a" / "out", "one")
    assert text_of(tmp_path / "a" / "out") == "one"
    assert names(tmp_path / "a") == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_an_older_output_is_replaced_whole(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    write(tmp_path / "out", "one")
    write(tmp_path / "out", "two")
    assert names(tmp_path / "out") == [NAME, "sub"]
    assert text_of(tmp_path / "out") == "two"
    assert names(tmp_path) == ["out"]


def test_a_failed_run_leaves_the_old_output_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    with contextlib.suppress(RuntimeError), AtomicFolder(tmp_path / "out") as folder:
        (folder / "text").write_text("two")
        raise RuntimeError
    assert text_of(tmp_path / "out") == "one"
    assert names(tmp_path) == ["out"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be written") as caught, AtomicFolder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.code == "E601"
    assert names(tmp_path) == []


def test_a_folder_of_someone_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat").write_text("meow")
    with pytest.raises(UsageError) as caught:
        write(tmp_path / "photos", "one")
    assert caught.value.code == "E203"
    assert names(tmp_path / "photos") == ["cat"]


def test_a_file_or_a_link_in_the_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(UsageError):
            write(tmp_path / name, "one")


@pytest.mark.parametrize("owner", ["9" * 20, "\u00b2", "x"])
def test_a_sibling_that_names_no_process_is_left_alone(tmp_path: Path, owner: str) -> None:
    (tmp_path / f".out.partial-{owner}-x").mkdir()
    write(tmp_path / "out", "one")
    assert len(names(tmp_path)) == 2


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from bcq.files.atomic import AtomicFolder\n"
        "with AtomicFolder(sys.argv[1]) as f: (f / 'x').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "out"], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    write(tmp_path / "out", "one")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("content", ['{"name": "my web app"}', "[]", "no JSON", '{"files": {}}'])
def test_a_manifest_of_another_program_protects_its_folder(tmp_path: Path, content: str) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / NAME).write_text(content)
    (tmp_path / "app" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="was not written by this program") as caught:
        write(tmp_path / "app", "one")
    assert caught.value.code == "E203"
    assert names(tmp_path / "app") == [NAME, "thesis.txt"]


@pytest.mark.parametrize("name", ["my_notes.txt", "sub/mine/weights.bin"])
def test_a_file_that_the_user_put_into_an_output_is_named_and_kept(tmp_path: Path, name: str) -> None:
    write(tmp_path / "out", "one")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UsageError, match=name) as caught:
        write(tmp_path / "out", "two")
    assert caught.value.code == "E203"
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert text_of(tmp_path / "out") == "one"


def test_the_current_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "one")
    monkeypatch.chdir(tmp_path / "out")
    for name in (".", "sub/..", ".."):
        with pytest.raises(UsageError, match="current directory") as caught:
            write(Path(name), "two")
        assert caught.value.code == "E203"
    assert text_of(tmp_path / "out") == "one"


@pytest.mark.parametrize(("source", "output"), [("a", "a"), ("a/b", "a"), ("a", "b/../a")])
def test_an_output_that_would_replace_its_source_is_refused(tmp_path: Path, source: str, output: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="would replace its source") as caught:
        check_apart(tmp_path / source, tmp_path / output)
    assert caught.value.code == "E203"
    check_apart(tmp_path / "a", tmp_path / "ab")


def test_a_failed_run_removes_the_parents_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with contextlib.suppress(RuntimeError), AtomicFolder(tmp_path / "a" / "b" / "c" / "out"):
        raise RuntimeError
    assert names(tmp_path / "a") == []


@pytest.mark.parametrize("nested", [False, True])
def test_a_full_disk_is_told_with_the_path_that_the_user_gave(tmp_path: Path, nested: bool) -> None:
    def fill() -> None:
        with AtomicFolder(tmp_path / "out") as folder, AtomicFolder(folder / "base") as inner:
            file = (inner if nested else folder) / "weights"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    with pytest.raises(ResourceError) as caught:
        fill()
    assert "partial" not in caught.value.message
    assert caught.value.message.startswith(f"{tmp_path / 'out'} cannot be written: No space")
