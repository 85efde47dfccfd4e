"""How much disk somebody's folders take: counted in small steps, so that other things can be done meanwhile.

Whoever owns the folders may be hostile: links are not followed, any depth is counted, and a folder that its owner
closed to himself is opened again (a hub without root is the same user). Each file counts with the blocks that it has,
at least 1 KB, a folder at least 4 KB: millions of empty ones are a way to fill a disk, too.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Sequence

from marimohub.spawners import sweep

COUNT_EVERY, COUNT_EVERY_BUSY = 60.0, 3.0  # seconds between two counts that nothing else gives a reason for
COUNT_STEP, COUNT_STEP_BUSY = 0.01, 0.05  # seconds of counting in one check
COUNT_FIRST = 3.0  # seconds after the start; until then there is better to do
TOLERANCE = 1 << 20  # saving a notebook goes on when the limit is reached; filling the disk does not

_MIB = 1 << 20
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - looked at, not used
_BLOCK = 512  # of st_blocks, see stat(2)
_LEAST_FILE, _LEAST_FOLDER = 1024, 4096
_LONG_PATH = 2048  # half of what a system call takes


class _Base:
    """A folder held open, which the paths of others begin at: however deep a tree is, no path gets too long."""

    def __init__(self, path: str) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.path = f"/proc/self/fd/{self._fd}"

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class DiskCount:
    """One pass over some folders."""

    def __init__(self, folders: Iterable[str | os.PathLike[str]]) -> None:
        self.total = 0
        self._todo: list[tuple[_Base | None, str]] = [(None, os.fspath(folder)) for folder in folders]
        self._linked: set[tuple[int, int]] = set()

    def step(self, seconds: float, enough: int | None = None) -> bool:
        """Count on for about so long.

        Args:
            enough: stop where the total is above this.
        Returns:
            Whether `total` is complete, or above `enough`.
        """
        until = time.monotonic() + seconds
        while self._todo:
            self._folder(*self._todo.pop())
            if enough is not None and self.total > enough:
                self._todo.clear()
            elif time.monotonic() > until:
                break
        return not self._todo

    def _folder(self, base: _Base | None, path: str) -> None:
        try:
            if len(path) > _LONG_PATH:
                base = _Base(path if base is None else f"{base.path}/{path}")
                path = "."
            with _opened(path if base is None else f"{base.path}/{path}") as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):  # gone meanwhile
                        self._entry(base, path, entry)
        except OSError:
            return

    def _entry(self, base: _Base | None, path: str, entry: os.DirEntry[str]) -> None:
        found = entry.stat(follow_symlinks=False)
        size = found.st_blocks * _BLOCK
        if stat.S_ISDIR(found.st_mode):
            self.total += max(size, _LEAST_FOLDER)
            self._todo.append((base, f"{path}/{entry.name}"))
            return
        if found.st_nlink > 1:
            key = (found.st_dev, found.st_ino)
            if key in self._linked:
                return
            self._linked.add(key)
        self.total += max(size, _LEAST_FILE)


def _opened(path: str) -> contextlib.AbstractContextManager[Iterable[os.DirEntry[str]]]:
    try:
        return os.scandir(path)
    except PermissionError:
        base = _Base(path)
        os.chmod(base.path, 0o700)  # that of the folder itself, whatever has its name by now
        return os.scandir(path)


def disk_bytes(folders: Iterable[str | os.PathLike[str]]) -> int:
    """What the folders take on disk, all at once. Folders that do not exist count nothing."""
    count = DiskCount(folders)
    while not count.step(1.0):
        pass
    return count.total


def _devices(folders: Iterable[str]) -> set[int]:
    found = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            found.add(os.stat(folder).st_dev)
    return found


def free_bytes(folders: Iterable[str]) -> int:
    """Free space of the file systems that the folders are on, each counted once. 0 where it cannot be told."""
    free: dict[int, int] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            free[found.f_fsid] = found.f_bfree * found.f_frsize
    return sum(free.values())


def shared_memory(pids: Iterable[int], uid: int | None) -> int:
    """Bytes in a server's /dev/shm: in its own if it has one, else what belongs to its user id, if that is its own.

    Args:
        pids: processes of the server. Where it has a view of the file system of its own, one of them must be readable.
    """
    view = _own_shared_memory(pids)
    if view is not None:
        with contextlib.suppress(OSError):
            found = os.statvfs(view)
            return (found.f_blocks - found.f_bfree) * found.f_frsize
    return sum(size for _, size in _shared_files(uid))


def clear_shared_memory(pids: Iterable[int], uid: int | None) -> bool:
    """Remove what `shared_memory` counts. Nobody may be using it. Returns whether nothing is left."""
    view = _own_shared_memory(pids)
    try:
        if view is not None:
            sweep.empty(view)
            return True
        for path, _ in _shared_files(uid):
            os.unlink(path)
    except OSError:
        return False
    return uid is not None


def _own_shared_memory(pids: Iterable[int]) -> str | None:
    """The path of /dev/shm as one of the processes sees it, if that is not the machine's."""
    for pid in pids:
        path = f"/proc/{pid}/root{_SHARED_MEMORY}"
        with contextlib.suppress(OSError):
            if os.stat(path).st_dev != os.stat(_SHARED_MEMORY).st_dev:
                return path
    return None


def _shared_files(uid: int | None) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    if uid is not None:
        with contextlib.suppress(OSError), os.scandir(_SHARED_MEMORY) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    file = entry.stat(follow_symlinks=False)
                    if file.st_uid == uid and stat.S_ISREG(file.st_mode):
                        found.append((entry.path, file.st_blocks * _BLOCK))
    return found


def memory_devices() -> frozenset[int]:
    """The device numbers of files that are in memory: those of memfd_create, and of /dev/shm."""
    fd = os.memfd_create("marimohub", os.MFD_CLOEXEC)
    try:
        devices = {os.fstat(fd).st_dev}
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):
        devices.add(os.stat(_SHARED_MEMORY).st_dev)
    return frozenset(devices)


def _descriptors(pid: int) -> list[str]:
    """Paths of a process's open files. A thread that has ended, as the first may, has none; any other has all."""
    with contextlib.suppress(OSError):
        if found := os.listdir(f"/proc/{pid}/fd"):
            return [f"/proc/{pid}/fd/{number}" for number in found]
        for thread in os.listdir(f"/proc/{pid}/task"):
            if found := os.listdir(f"/proc/{pid}/task/{thread}/fd"):
                return [f"/proc/{pid}/task/{thread}/fd/{number}" for number in found]
    return []


def open_nameless(pid: int, seen: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Files that a process holds open though they have no name any more: (device, bytes) of each.

    Args:
        seen: what was found in other processes, not to be counted twice; added to.
    """
    found = []
    for path in _descriptors(pid):
        try:
            file = os.stat(path)
        except OSError:
            continue
        if stat.S_ISREG(file.st_mode) and file.st_nlink == 0 and (file.st_dev, file.st_ino) not in seen:
            seen.add((file.st_dev, file.st_ino))
            found.append((file.st_dev, file.st_blocks * _BLOCK))
    return found


class DiskWatch:
    """Counts folders now and then, and at once when their file systems lost free space that they may have taken.

    Attributes:
        busy: they may hold too much by now; asking soon again is worth while.
    """

    def __init__(self, folders: Sequence[str], limit: int) -> None:
        self.limit = limit
        self.busy = False
        self._folders = folders
        self._counting: DiskCount | None = None
        self._used: int | None = None
        self._due = time.monotonic() + COUNT_FIRST
        self._began, self._cost = 0.0, 0.0
        self._free = free_bytes(self._folders)
        self._free_then = self._free
        self._mark: int | None = None  # what was used when the limit was found to be reached

    def count(self, now: float, pids: Iterable[int]) -> int | None:
        """Count on; the bytes in use if a count was finished just now.

        Args:
            pids: processes that may hold files open which have no name any more.
        """
        if self._counting is None:
            taken = self._free - free_bytes(self._folders)
            room = self.limit - (self._used or 0)
            self.busy = taken > max(room // 4, 16 * _MIB)
            # never more than a tenth of the time, unless there is a reason
            if now < self._due and not (self.busy and now - self._began > self._cost * 10):
                return None
            self._counting, self._began, self._cost = DiskCount(self._folders), now, 0.0
            self._free_then = free_bytes(self._folders)
        begun = time.monotonic()
        # what is much too much needs no exact number
        done = self._counting.step(COUNT_STEP_BUSY if self.busy else COUNT_STEP, enough=self.limit * 2)
        self._cost += time.monotonic() - begun
        if not done:
            return None
        seen: set[tuple[int, int]] = set()
        devices = _devices(self._folders)
        nameless = sum(size for pid in pids for device, size in open_nameless(pid, seen) if device in devices)
        self._used = self._counting.total + nameless
        self._counting, self._free = None, self._free_then
        self.busy = self._used > self.limit
        self._due = now + (COUNT_EVERY_BUSY if self.busy else COUNT_EVERY) + self._cost * 10
        return self._used

    def too_much(self, used: int, notebooks: bool) -> bool:
        """Whether notebooks must end: more is used than allowed, and more than when they ended for it before."""
        if used <= self.limit:
            self._mark = None
            return False
        first = self._mark is None
        grown = self._mark is None or used > self._mark + TOLERANCE or used > self.limit + self.limit // 10
        if first or (grown and notebooks):
            self._mark = used
            return True
        return False
