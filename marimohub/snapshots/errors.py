"""What can go wrong with a warehouse snapshot, each with a sentence for the person who reads it."""

from __future__ import annotations

import errno

# A quota and the file-size limit (RLIMIT_FSIZE) feel the same to the person who has to make room.
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class SnapshotError(Exception):
    """Base of all snapshot errors. `message` is a sentence that may be shown to a user."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SourceMissing(SnapshotError):
    """There is no readable regular file at the path of the warehouse."""


class NotADuckDBFile(SnapshotError):
    """The file is not a DuckDB database: empty, too short, or with other magic bytes."""


class UnsupportedFormat(SnapshotError):
    """A DuckDB file that must not be guessed at: encrypted, newer storage, or an unknown write-ahead log."""


class SourceDamaged(SnapshotError):
    """The file is a DuckDB database, but its headers, its length or its content are broken."""


class SourceBusy(SnapshotError):
    """A program holds the file, and in its present state it can only be copied once that program let go."""


class SourceChangedTooFast(SnapshotError):
    """The writer checkpoints more often than one copy takes, until the deadline."""


class CopyTooSlow(SnapshotError):
    """One copy of the bytes alone takes longer than the deadline."""


class NoSpace(SnapshotError):
    """No room for the copy. Nothing half-written is left."""


class HelperFailed(SnapshotError):
    """The helper process ended without an answer (killed, out of memory)."""


_BY_NAME: dict[str, type[SnapshotError]] = {
    kind.__name__: kind
    for kind in (
        SourceMissing, NotADuckDBFile, UnsupportedFormat, SourceDamaged, SourceBusy, SourceChangedTooFast,
        CopyTooSlow, NoSpace, HelperFailed,
    )
}  # fmt: skip


def by_name(name: str, message: str) -> SnapshotError:
    """The error that the helper process reported as class name and sentence."""
    return _BY_NAME.get(name, SnapshotError)(message)


def is_no_space(error: OSError) -> bool:
    """Whether an OSError means that the disk, the quota or the file-size limit is exhausted."""
    return error.errno in _NO_SPACE
