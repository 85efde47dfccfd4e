"""Giving the files of a folder to another user, when the hub begins to run servers as users of their own.

Whoever filled the folder ran as root and may have left anything there: links to foreign files, devices, mounts. Only
what lies in the folder alone is given away.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

MAX_DEPTH = 256  # each level holds a descriptor
_HERE = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Handover:
    """What became of a tree: how many files have a new owner, and the paths of those that were left to the old one."""

    given: int = 0
    left: list[str] = field(default_factory=list)


@contextmanager
def opened(name: str, within: int | None = None) -> Iterator[int]:
    """A descriptor of a folder; links are not followed. Raises OSError."""
    descriptor = os.open(name, os.O_RDONLY | _HERE, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def hand_over(folders: Mapping[str, int], former: int, uid: int) -> Handover:
    """Give everything below open folders that belongs to `former` to `uid` and its group; not the folders themselves.

    Links are given, not followed. Left as they are: other file systems, devices (made useless), and files with a name
    outside of the folders, since nobody knows whose they are.

    Nothing may run as `uid` or `former` but the hub: a file could be named and unnamed elsewhere meanwhile.

    Args:
        folders: descriptors by name.

    Raises:
        OSError: ELOOP if folders are nested deeper than MAX_DEPTH; what was given until then stays given.
    """
    names: Counter[tuple[int, int]] = Counter()
    for folder in folders.values():
        _count(folder, os.fstat(folder).st_dev, names, 0)
    result = Handover()
    for name, folder in folders.items():
        _give(folder, os.fstat(folder).st_dev, former, uid, names, result, f"{name}/")
    return result


def _entries(folder: int, depth: int) -> Iterator[tuple[str, int, os.stat_result]]:
    """Name, descriptor (O_PATH: opens nothing, follows nothing) and status of each entry; what vanishes is no entry."""
    if depth > MAX_DEPTH:
        raise OSError(errno.ELOOP, f"folders are nested deeper than {MAX_DEPTH}")
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                yield name, descriptor, os.fstat(descriptor)
            finally:
                os.close(descriptor)


def _count(folder: int, device: int, names: Counter[tuple[int, int]], depth: int) -> None:
    """How many names files with several have in this tree."""
    for _name, entry, status in _entries(folder, depth):
        if stat.S_ISDIR(status.st_mode):
            if status.st_dev == device:
                with opened(".", entry) as own:
                    _count(own, device, names, depth + 1)
        elif status.st_nlink > 1:
            names[status.st_dev, status.st_ino] += 1


def _give(
    folder: int,
    device: int,
    former: int,
    uid: int,
    names: Counter[tuple[int, int]],
    result: Handover,
    path: str,
    depth: int = 0,
) -> None:
    for name, entry, status in _entries(folder, depth):
        where = f"{path}{name}"
        is_folder = stat.S_ISDIR(status.st_mode)
        if status.st_dev != device:
            result.left.append(where)
            continue
        if is_folder:
            with opened(".", entry) as own:
                _give(own, device, former, uid, names, result, f"{where}/", depth + 1)
        if status.st_uid != former:
            continue
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            os.chmod(f"/proc/self/fd/{entry}", 0)
            result.left.append(where)
        elif not is_folder and status.st_nlink > max(1, names[status.st_dev, status.st_ino]):
            result.left.append(where)
        else:
            # by the descriptor: whatever has that name by now, this is what was looked at. Clears setuid and setgid.
            os.chown(f"/proc/self/fd/{entry}", uid, uid)
            result.given += 1
