# SPDX-License-Identifier: Apache-2.0
"""An output folder that appears whole or not at all: written beside its place, synced, renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from bcq.errors import InputError, ResourceError, UsageError

MARKER = "MANIFEST.json"  # a folder that has one was written by this program and may be replaced
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class AtomicFolder:
    """Context manager; ``with AtomicFolder(path) as folder:`` yields a temporary sibling of ``path``.

    When the block ends well, every file is synced and the sibling takes the place of ``path``. When it fails,
    the sibling is removed and ``path`` stays as it was. A sibling that a killed run left is removed by the
    next run.

    Args:
        path: the folder to make; it may exist if it is empty or was written by this program.

    Raises:
        UsageError: E203 when ``path`` holds something else.
        InputError: E101 when the parent of ``path`` is not a folder.
        ResourceError: E601 when the disk refuses.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._partial: Path | None = None

    def __enter__(self) -> Path:
        parent = self._path.parent
        if parent.exists() and not parent.is_dir():
            raise InputError("E101", f"{parent} is not a folder.")
        _check_replaceable(self._path)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(self._path)
            prefix = f".{self._path.name}.partial-{os.getpid()}-"
            self._partial = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            self._partial.chmod(0o777 & ~_umask())
        except OSError as fault:
            raise _disk(self._path, fault) from fault
        return self._partial

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._partial is not None
        try:
            if kind is None:
                _sync_tree(self._partial)
                _swap(self._partial, self._path)
        except OSError as disk:
            raise _disk(self._path, disk) from disk
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
        if isinstance(fault, OSError):
            raise _disk(self._path, fault) from fault


def _check_replaceable(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError("E203", f"{path} exists and is not a folder.", "Choose another output.")
    if path.is_dir() and any(path.iterdir()) and not (path / MARKER).is_file():
        raise UsageError(
            "E203",
            f"{path} exists and was not written by this program (it has no {MARKER}).",
            "Choose another output, or remove the folder yourself.",
        )


def _swap(partial: Path, path: Path) -> None:
    """Puts ``partial`` at ``path``; what was there ends up at ``partial``, where it is removed."""
    if not path.exists():
        partial.rename(path)
    elif not _exchange(partial, path):
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-{os.getpid()}-", dir=path.parent))
        path.rename(aside / "old")
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


def _remove_stale(path: Path) -> None:
    """Removes siblings whose process is gone."""
    prefix = f".{path.name}.partial-"
    for sibling in path.parent.iterdir():
        owner = sibling.name.removeprefix(prefix).partition("-")[0]
        if sibling.name.startswith(prefix) and owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(sibling, ignore_errors=True)


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


def _disk(path: Path, fault: OSError) -> ResourceError:
    where = f" ({fault.filename})" if fault.filename else ""
    return ResourceError(
        "E601",
        f"{path} cannot be written: {fault.strerror}{where}.",
        "The former output, if any, is untouched.",
    )
