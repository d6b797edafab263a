# SPDX-License-Identifier: Apache-2.0
"""An output folder that appears whole or not at all: written beside its place, synced, renamed."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bcq.errors import InputError, ResourceError, UsageError, is_out_of_memory, out_of_memory
from bcq.files import manifest

if TYPE_CHECKING:
    from bcq.matrices.resume import Finished

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_ASIDE = "old"  # where the former output waits if names cannot be exchanged in one step
_SECONDS_TO_LOCK = 60.0


class AtomicFolder:
    """Context manager; ``with AtomicFolder(path) as folder:`` yields a temporary sibling of ``path``.

    When the block ends well, every file is synced and the sibling takes the place of ``path``. When it fails,
    the sibling is removed and ``path`` stays as it was. A sibling that a killed run left is removed by the
    next run.

    Args:
        path: the folder to make; it may exist if it is empty or holds only files that the manifest of this
            program lists.
        finished: work that outlives a stopped run; opened and closed with the folder.

    Raises:
        UsageError: E203 when ``path`` holds something else, or the current directory, or another run writes
            it.
        InputError: E101 when the parent of ``path`` is not a folder.
        ResourceError: E601 when the disk refuses.
    """

    def __init__(self, path: str | Path, finished: Finished | None = None) -> None:
        self._path = Path(path).absolute()
        self._finished = finished
        self._partial: Path | None = None
        self._lock = -1
        self._made: list[Path] = []

    def __enter__(self) -> Path:
        parent = self._path.parent
        if parent.exists() and not parent.is_dir():
            raise InputError("E101", f"{parent} is not a folder.")
        check_replaceable(self._path)
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if self._finished is not None:
                self._finished.open()
            _remove_stale(self._path)
            self._partial, self._lock = _make_partial(self._path)
            return self._partial
        except BaseException as fault:
            told = self._told(fault)
            if self._finished is not None:
                self._finished.close(told)
            self._remove_parents()
            if told is fault:
                raise
            raise told from fault

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        told = self._end(fault)
        if self._finished is not None:
            told = self._finished.close(told) or told
        if told is not None:
            self._remove_parents()
            if told is not fault:
                raise told from fault

    def _end(self, fault: BaseException | None) -> BaseException | None:
        """Puts the folder at its place, or removes it; the fault as the user will read it."""
        assert self._partial is not None
        try:
            if fault is None:
                _sync_tree(self._partial)
                _swap(self._partial, self._path)
        except OSError as disk:
            fault = disk
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
            os.close(self._lock)
        return None if fault is None else self._told(fault)

    def _told(self, fault: BaseException) -> BaseException:
        cause = fault.__cause__ if self._is_own(fault) else fault
        if cause is not None and is_out_of_memory(cause):
            return out_of_memory(f"while {self._path} was written")
        return self._disk(cause) if isinstance(cause, OSError) else fault

    def _remove_parents(self) -> None:
        """Removes the parents that were made for this output, as far as they are empty."""
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return

    def _is_own(self, fault: BaseException) -> bool:
        """Whether a full disk was already explained with a path that only exists during the run."""
        is_disk = isinstance(fault, ResourceError) and fault.code == "E601"
        return is_disk and str(self._partial) in str(fault)

    def _disk(self, fault: OSError) -> ResourceError:
        """The fault with the path that the user knows; the name of a temporary file would not help."""
        name = str(fault.filename or "")
        temporary = self._partial is not None and name.startswith(str(self._partial))
        where = f" ({name})" if name and not temporary else ""
        return ResourceError(
            "E601",
            f"{self._path} cannot be written: {fault.strerror or fault}{where}.",
            "The former output, if any, is untouched.",
        )


def check_apart(source: Path, output: str | Path) -> None:
    """Refuses an output that would replace its own source; one inside the source's folder does no harm.

    Raises:
        UsageError: E203 when the source is the output folder or lies inside it.
    """
    if source.resolve().is_relative_to(Path(output).resolve()):
        raise UsageError(
            "E203", f"the output {output} would replace its source {source}.", "Choose another output."
        )


def check_replaceable(path: Path) -> None:
    """Refuses an output that something else lies at.

    Raises:
        UsageError: E203 when ``path`` is no folder, holds the current directory, or was not written by us.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError("E203", f"{path} exists and is not a folder.", "Choose another output.")
    if _holds_current(path):
        raise UsageError("E203", f"{path} is or holds the current directory.", "Choose another output.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    listed = manifest.listed_files(path)
    if listed is None:
        raise UsageError(
            "E203",
            f"{path} exists and was not written by this program (it has no {manifest.NAME} of it).",
            "Choose another output, or remove the folder yourself.",
        )
    foreign = _foreign(path, listed)
    if foreign:
        raise UsageError(
            "E203",
            f"{path} exists and holds {foreign}, which this program did not write.",
            "Move that file away, or choose another output.",
        )


def _holds_current(path: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(path.resolve())
    except FileNotFoundError:  # the current directory was removed
        return False


def _foreign(folder: Path, listed: Collection[str]) -> str:
    """The first file or link below ``folder`` that the manifest does not list; empty when there is none."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != manifest.NAME and name not in listed and (path.is_symlink() or not path.is_dir()):
            return name
    return ""


def _swap(partial: Path, path: Path) -> None:
    """Puts ``partial`` at ``path``; what was there ends up at ``partial``, where it is removed."""
    if not path.exists():
        partial.rename(path)
    elif not _exchange(partial, path):
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-{os.getpid()}-", dir=path.parent))
        path.rename(aside / _ASIDE)
        partial.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
    sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step, where the kernel can (Linux 3.15, renameat2); false where it cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root) / name)
        sync(Path(root))


def sync(path: Path) -> None:
    """Makes a file's bytes, or a folder's names, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_partial(path: Path) -> tuple[Path, int]:
    """A folder beside ``path``, locked for as long as its process lives."""
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-{os.getpid()}-", dir=path.parent))
    partial.chmod(0o777 & ~_umask())
    handle = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a file system without locks: the process id has to do
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return partial, handle


def _remove_stale(path: Path) -> None:
    """Removes siblings whose process is gone, and puts back an output that it had moved aside."""
    prefix = f".{path.name}.partial-"
    for sibling in path.parent.iterdir():
        owner = sibling.name.removeprefix(prefix).partition("-")[0]
        if not (sibling.name.startswith(prefix) and _is_process(owner)) or _in_use(sibling, int(owner)):
            continue
        if (sibling / _ASIDE).is_dir() and not path.exists():
            (sibling / _ASIDE).rename(path)
        shutil.rmtree(sibling, ignore_errors=True)


def _in_use(sibling: Path, owner: int) -> bool:
    """Whether the folder is locked, or so new that its process may be about to lock it."""
    try:
        handle = os.open(sibling, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:
        return True  # a link, or gone already: nothing to remove
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        age = time.time() - os.fstat(handle).st_mtime
    except BlockingIOError:
        return True
    except OSError:
        return _alive(owner)
    finally:
        os.close(handle)
    return age < _SECONDS_TO_LOCK and _alive(owner)


def _is_process(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10  # kernel limit: 2^22


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
