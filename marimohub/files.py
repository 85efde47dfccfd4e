"""Durable writes of small text files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
ASIDE_PREFIX = ".deleted-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoSpace(Exception):
    """The disk (or the quota) is full; nothing was changed."""

    code = "no_space"

    def __init__(self) -> None:
        self.message = "The hub's disk is full, so nothing was saved. Ask an administrator to free space."
        super().__init__(self.message)


@contextmanager
def full_disk_told() -> Iterator[None]:
    """Turn an OSError that means "no space" into NoSpace."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace from error
        raise


def text_hash(text: str) -> str:
    """SHA-256 of the UTF-8 text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_temporary(folder: Path, text: str, *, mode: int = 0o640) -> Path:
    """Write `text` to a new hidden file in `folder` and fsync it; the caller renames or removes it.

    Raises:
        NoSpace: the disk is full; no file is left behind.
    """
    path = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        with full_disk_told():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
    except (OSError, NoSpace):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return path


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durable(path: Path, text: str, *, mode: int = 0o640) -> None:
    """Replace `path` by `text`: after a crash at any point the file is the old or the new text, whole.

    Raises:
        NoSpace: the disk is full; the old file is untouched.
    """
    temporary = write_temporary(path.parent, text, mode=mode)
    try:
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def set_aside(path: Path, mark: str) -> Iterator[None]:
    """Remove a file if the block succeeds, and put it back if it raises. A file that is missing is none to remove.

    Meanwhile it has a hidden name that ends in `mark`: whoever died in the block finds it by `files_aside`.

    Raises:
        NoSpace: the disk is full; the file is where it was.
    """
    aside = path.with_name(f"{ASIDE_PREFIX}{mark}")
    moved = False
    try:
        with full_disk_told(), contextlib.suppress(FileNotFoundError):
            os.rename(path, aside)
            moved = True
            sync_folder(path.parent)
        yield
    except BaseException:
        if moved:
            os.rename(aside, path)
        raise
    # one that cannot be removed now goes at the next start
    with contextlib.suppress(OSError):
        aside.unlink()


def files_aside(folder: Path) -> dict[str, Path]:
    """The files in `folder` whose removal was interrupted, by their mark."""
    return {path.name.removeprefix(ASIDE_PREFIX): path for path in folder.glob(f"{ASIDE_PREFIX}*")}


def read_text(path: Path, *, limit: int) -> str:
    """The text of a regular file of at most `limit` bytes, links not followed. Never waits, for a pipe say.

    Raises:
        OSError: it is not there, not a regular file, or (EFBIG) larger.
        UnicodeDecodeError: it is not UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data.decode()


def remove_temporaries(folder: Path) -> int:
    """Remove what an interrupted write left in `folder`; returns how many."""
    count = 0
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)
        count += 1
    return count
