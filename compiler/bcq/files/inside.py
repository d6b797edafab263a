# SPDX-License-Identifier: Apache-2.0
"""Files that a model folder names: regular, inside that folder, known by no other name, and not replaced."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from bcq.errors import InputError

SPARSE_BYTES = 1 << 30  # files below this fit into memory whatever they hold
SPARSE_RATIO = 100  # no file system packs real weights this much
_LONGEST_NAME = 255  # bytes, what file systems allow
_MOST_NAMES = 10_000  # of a folder that is searched for the other names of a file
_UNSAFE_HINT = "Only use models from people you trust; save the model again with its data in its own folder."


@dataclass(frozen=True)
class Stamp:
    """What a file was when it was checked; ``ctime`` moves with every rename, write and link."""

    path: Path
    device: int
    inode: int
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result | None = None) -> Stamp:
        """The stamp of a file as it is now."""
        found = status or path.stat()
        return cls(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def check_unchanged(stamps: Iterable[Stamp]) -> None:
    """Refuses files that were replaced or written between their check and the end of the work.

    Raises:
        InputError: E108 for the first such file.
    """
    for stamp in stamps:
        try:
            same = Stamp.of(stamp.path) == stamp
        except OSError:
            same = False
        if not same:
            raise InputError(
                "E108",
                f"'{stamp.path}' was changed while it was read.",
                "Run again when nothing writes to the model's folder.",
            )


def relative_name(location: str, who: str) -> PurePosixPath:
    """A path that a file names, when it cannot lead out of the folder by its letters alone.

    Raises:
        InputError: E108 for an absolute path, ``..``, a backslash, or what no file system has in a name.
    """
    name = PurePosixPath(location)
    absolute = name.is_absolute() or bool(PureWindowsPath(location).drive)
    odd = "\\" in location or any(ord(letter) < 32 or ord(letter) == 127 for letter in location)
    odd = odd or any(0xD800 <= ord(letter) < 0xE000 for letter in location)  # half of a surrogate pair
    odd = odd or any(len(part.encode("utf-8", "replace")) > _LONGEST_NAME for part in name.parts)
    if not name.parts or absolute or odd or ".." in name.parts:
        raise InputError(
            "E108",
            f"{who} has its data at {location[:200]!r}, expected a relative path without '..'.",
            _UNSAFE_HINT,
        )
    return name


def inner_file(path: Path, folder: Path, who: str) -> Stamp:
    """A regular file of ``folder``.

    Symbolic links may stay inside the folder, or lead from a snapshot of a Hugging Face cache to its blobs.
    A file with a second name outside is refused, as it may be anything that its owner had at hand; the files
    of installed Python packages are not, because installers link them from their caches.

    Args:
        path: the file, inside ``folder`` by its letters.
        folder: the model's folder.
        who: who names the file, for errors.

    Raises:
        InputError: E101 when it is missing, E108 when it is unsafe.
    """
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as fault:  # RuntimeError: a loop of links, until Python 3.12
        linked = os.path.islink(path)  # noqa: PTH114 - it is False, too, for a path that is too long
        if isinstance(fault, OSError) and not linked:
            raise InputError("E101", f"'{path}' is missing: {who}.", "Copy the model again.") from fault
        raise InputError("E108", f"'{path}' is a link that leads nowhere: {who}.", _UNSAFE_HINT) from fault
    roots = _roots(folder)
    if not any(real.is_relative_to(root) for root in roots):
        raise InputError("E108", f"'{path}' is a link that leaves the folder: {who}.", _UNSAFE_HINT)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("E108", f"'{path}' is no regular file: {who}.", _UNSAFE_HINT)
    _check_links(path, real, status, roots, who)
    if status.st_size > SPARSE_BYTES and status.st_blocks * 512 * SPARSE_RATIO < status.st_size:
        raise InputError(
            "E108",
            f"'{path}' is nearly all holes: it claims {status.st_size:,} bytes, "
            f"the disk holds {status.st_blocks * 512:,}: {who}.",
            _UNSAFE_HINT,
        )
    return Stamp.of(path, status)


def _check_links(path: Path, real: Path, status: os.stat_result, roots: list[Path], who: str) -> None:
    installed = Path(sysconfig.get_paths()["purelib"]).resolve()
    if status.st_nlink < 2 or real.is_relative_to(installed):
        return
    if _names_of(status, roots) < status.st_nlink:
        raise InputError(
            "E108",
            f"'{path}' has {status.st_nlink} hard links, some of them outside the folder: {who}.",
            f"Give it bytes of its own: cp '{path}' '{path}.copy' && mv '{path}.copy' '{path}'.",
        )


def _names_of(status: os.stat_result, roots: list[Path]) -> int:
    """How many names a file has below some folders."""
    identity, count, seen = (status.st_dev, status.st_ino), 0, 0
    for root in roots:
        for parent, _, names in os.walk(root):
            for name in names:
                found = (Path(parent) / name).lstat()
                count += (found.st_dev, found.st_ino) == identity
                seen += 1
                if seen > _MOST_NAMES:
                    return count
    return count


def _roots(folder: Path) -> list[Path]:
    """The folder, and for a folder of ``snapshots`` of a Hugging Face cache the ``blobs`` beside these."""
    real = folder.resolve()
    for parent in (real, *real.parents):
        if parent.parent.name == "snapshots":
            blobs = parent.parent.parent / "blobs"
            return [real, blobs] if blobs.is_dir() and not blobs.is_symlink() else [real]
    return [real]
