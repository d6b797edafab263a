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

from bcq import atomic
from bcq.atomic import MARKER, AtomicFolder
from bcq.errors import ResourceError, UsageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path, text: str) -> None:
    with AtomicFolder(target) as folder:
        (folder / MARKER).write_text(text)


def test_a_new_folder_appears_with_its_files(tmp_path: Path) -> None:
    write(tmp_path / "a" / "out", "one")
    assert (tmp_path / "a" / "out" / MARKER).read_text() == "one"
    assert names(tmp_path / "a") == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_an_older_output_is_replaced_whole(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    write(tmp_path / "out", "one")
    (tmp_path / "out" / "extra").write_text("gone after the next run")
    write(tmp_path / "out", "two")
    assert names(tmp_path / "out") == [MARKER]
    assert (tmp_path / "out" / MARKER).read_text() == "two"
    assert names(tmp_path) == ["out"]


def test_a_failed_run_leaves_the_old_output_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    with contextlib.suppress(RuntimeError), AtomicFolder(tmp_path / "out") as folder:
        (folder / MARKER).write_text("two")
        raise RuntimeError
    assert (tmp_path / "out" / MARKER).read_text() == "one"
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


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from bcq.atomic import AtomicFolder\n"
        "with AtomicFolder(sys.argv[1]) as f: (f / 'x').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "out"], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    write(tmp_path / "out", "one")
    assert names(tmp_path) == ["out"]
