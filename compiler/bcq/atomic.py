# SPDX-License-Identifier: Apache-2.0
"""An output folder that appears whole or not at all: written beside its place, synced, renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from bcq import manifest
from bcq.errors import InputError, ResourceError, UsageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class AtomicFolder:
    """Context manager; ``with AtomicFolder(path) as folder:`` yields a temporary sibling of ``path``.

    When the block ends well, every file is synced and the sibling takes the place of ``path``. When it fails,
    the sibling is removed and ``path`` stays as it was. A sibling that a killed run left is removed by the
    next run.

    Args:
        path: the folder to make; it may exist if it is empty or holds only files that the manifest of this
            program lists.

    Raises:
        UsageError: E203 when ``path`` holds something else, or the current directory.
        InputError: E101 when the parent of ``path`` is not a folder.
        ResourceError: E601 when the disk refuses.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._partial: Path | None = None
        self._made: list[Path] = []

    def __enter__(self) -> Path:
        parent = self._path.parent
        if parent.exists() and not parent.is_dir():
            raise InputError("E101", f"{parent} is not a folder.")
        _check_replaceable(self._path)
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(self._path)
            prefix = f".{self._path.name}.partial-{os.getpid()}-"
            self._partial = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            self._partial.chmod(0o777 & ~_umask())
        except OSError as fault:
            self._remove_parents()
            raise self._disk(fault) from fault
        return self._partial

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._partial is not None
        done = False
        try:
            if kind is None:
                _sync_tree(self._partial)
                _swap(self._partial, self._path)
                done = True
        except OSError as disk:
            raise self._disk(disk) from disk
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
            if not done:
                self._remove_parents()
        cause = fault.__cause__ if fault is not None and self._is_own(fault) else fault
        if isinstance(cause, OSError):
            raise self._disk(cause) from cause

    def _remove_parents(self) -> None:
        """Removes the parents that were made for this output, as far as they are empty."""
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:
                return

    def _is_own(self, fault: BaseException) -> bool:
        """Whether a full disk was already explained with a path that only exists during the run."""
        return (
            isinstance(fault, ResourceError) and fault.code == "E601" and str(self._partial) in fault.message
        )

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


def _check_replaceable(path: Path) -> None:
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
        if sibling.name.startswith(prefix) and _is_process(owner) and not _alive(int(owner)):
            shutil.rmtree(sibling, ignore_errors=True)


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
