"""Emptying a folder that somebody hostile has filled: no link is followed, no depth or number is too much."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import sys
import time
import traceback

from marimohub.spawners.job import Identity

PATIENCE = 10.0  # seconds to wait for another guard that empties the folder
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TempFolder:
    """A person's temp folder, which all servers of that person share: empty before the first and after the last.

    A lock on the folder tells which that is, between guards that know nothing of each other. The person can hold that
    lock, too, and so keep files in a folder that is theirs.
    """

    def __init__(self, path: str, identity: Identity | None) -> None:
        self._path, self._identity = path, identity
        self._fd: int | None = None

    def take(self) -> None:
        """Empty it, unless another server uses it; wait while it is being emptied. One that does not exist is fine."""
        try:
            self._fd = os.open(self._path, _FOLDER)
        except OSError as error:
            print(f"[guard] the temp folder cannot be opened: {error}", file=sys.stderr, flush=True)
            return
        if self._lock(fcntl.LOCK_EX):
            self._sweep()
        until = time.monotonic() + PATIENCE
        while not self._lock(fcntl.LOCK_SH) and time.monotonic() < until:
            time.sleep(0.02)

    def leave(self) -> None:
        """Empty it, unless another server uses it."""
        if self._fd is not None and self._lock(fcntl.LOCK_EX):
            self._sweep()

    def _lock(self, kind: int) -> bool:
        assert self._fd is not None
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _sweep(self) -> None:
        """Empty the folder in a process that is its owner's."""
        if not _anything(self._path):
            return
        pid = os.fork()
        if pid == 0:
            try:
                if self._identity is not None:
                    os.setgroups(())
                    os.setresgid(*(self._identity.gid,) * 3)
                    os.setresuid(*(self._identity.uid,) * 3)
                assert self._fd is not None
                empty(self._fd)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(0)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _anything(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def empty(folder: str | int) -> None:
    """Remove everything in a folder. Nobody else may be changing it at the same time.

    Folders below are moved up before they are looked into, so that however deep they are nested, no path gets long and
    few descriptors are enough.

    Args:
        folder: a path, or a descriptor, for a folder to which the way may be closed.
    Raises:
        OSError: something could not be removed.
    """
    top = os.open(folder, _FOLDER) if isinstance(folder, str) else os.open(".", _FOLDER, dir_fd=folder)
    try:
        while (name := _clear(top, top)) is not None:
            _remove_folder(top, name)
    finally:
        os.close(top)


def _clear(inside: int, top: int) -> str | None:
    """Unlink what is no folder, and move folders up to `top`. Returns a folder that is left in `top`, if that is it."""
    left = None
    with os.scandir(inside) as entries:
        for entry in entries:
            if not stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                os.unlink(entry.name, dir_fd=inside)
            elif inside == top:
                left = entry.name
            else:
                os.chmod(entry.name, 0o700, dir_fd=inside)  # a closed folder cannot be moved
                os.rename(entry.name, f".sweep-{secrets.token_hex(8)}", src_dir_fd=inside, dst_dir_fd=top)
    return left


def _remove_folder(top: int, name: str) -> None:
    os.chmod(name, 0o700, dir_fd=top)  # its owner may have closed it to himself
    inside = os.open(name, _FOLDER, dir_fd=top)
    try:
        _clear(inside, top)
    finally:
        os.close(inside)
    os.rmdir(name, dir_fd=top)
