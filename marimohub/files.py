"""Durable writes of small text files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoSpace(Exception):
    """The disk (or the quota) is full; nothing was changed."""

    code = "no_space"

    def __init__(self) -> None:
        self.message = "The hub's disk is full, so nothing was saved. Ask an administrator to free space."
        super().__init__(self.message)


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
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise NoSpace from error
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


def read_text(path: Path) -> str:
    """The text of a regular file, links not followed.

    Raises:
        OSError: it is not there, or not a regular file.
        UnicodeDecodeError: it is not UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read().decode()


def remove_temporaries(folder: Path) -> int:
    """Remove what an interrupted write left in `folder`; returns how many."""
    count = 0
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)
        count += 1
    return count
