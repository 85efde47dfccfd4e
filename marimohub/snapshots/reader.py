"""The live warehouse as it lies on disk: its headers, its log, its lock, and whether they fit together.

Why these checks are enough is said in source.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from marimohub.snapshots.errors import SourceMissing
from marimohub.snapshots.layout import (
    HEADERS_SIZE,
    Headers,
    MalformedWal,
    TornHeader,
    Wal,
    parse_headers,
    parse_wal,
    walk_frames,
)

SIDECARS = (".wal", ".wal.checkpoint", ".wal.recovery")
_F_OFD_GETLK = 36  # linux/fcntl.h; sees the locks of this process too, which F_GETLK does not
_FLOCK = struct.Struct("hhqqi4x")


def unreadable(subject: str, error: OSError) -> SourceMissing:
    """The error for a file that is there but cannot be read; `subject` begins the sentence."""
    reason = (error.strerror or "error").lower()
    return SourceMissing(f"{subject} cannot be read ({reason}). Check its permissions and its disk.")


class Unsettled(Exception):
    """The file is in the middle of something. `overtaken` if a whole byte copy was lost to it."""

    def __init__(self, reason: str, *, overtaken: bool = False, malformed: bool = False) -> None:
        super().__init__(reason)
        self.overtaken = overtaken
        self.malformed = malformed


@dataclass(frozen=True)
class State:
    """One consistent view of headers and WAL. `sidecars` is set in quiet mode: what lies beside the file."""

    identity: tuple[int, ...]
    headers: Headers
    wal: bytes
    wal_inode: int | None
    sidecars: tuple[tuple[int, ...] | None, ...] | None

    def key(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((self.identity, len(self.wal), self.sidecars)).encode())
        digest.update(self.headers.raw)
        digest.update(self.wal)
        return digest.hexdigest()


class SourceFile:
    """The open file, read only, and what lies beside it."""

    def __init__(self, path: Path) -> None:
        self.given = path
        self.name = f"The warehouse {path}"
        self._open()

    def _open(self) -> None:
        # DuckDB 2.0 puts the log beside the real file, also when it opens a symbolic link.
        self.path = os.path.realpath(self.given)
        self.wal_path = f"{self.path}.wal"
        try:
            # O_NONBLOCK: a FIFO at that path must not hang the hub's helper.
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise SourceMissing(f"{self.name} does not exist. Check the warehouse setting.") from None
        except OSError as error:
            raise unreadable(self.name, error) from None
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            os.close(self.descriptor)
            raise SourceMissing(f"{self.name} is not a file. Point the warehouse setting at a DuckDB file.")

    def close(self) -> None:
        os.close(self.descriptor)

    def locked(self) -> bool:
        """Whether a writer holds the file."""
        query = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        try:
            answer = fcntl.fcntl(self.descriptor, _F_OFD_GETLK, query)
        except OSError:  # no open-file-description locks here
            answer = fcntl.fcntl(self.descriptor, fcntl.F_GETLK, query)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def identity(self) -> tuple[int, ...]:
        """Device, inode, modification time. The time tells two files apart that grew from one and were swapped."""
        try:
            found = os.stat(self.path)
            here = os.fstat(self.descriptor)
            if (found.st_dev, found.st_ino) == (here.st_dev, here.st_ino):
                return found.st_dev, found.st_ino, found.st_mtime_ns
        except FileNotFoundError:
            pass
        self.close()
        self._open()
        raise Unsettled("file was replaced", overtaken=True)

    def headers(self) -> Headers:
        return parse_headers(os.pread(self.descriptor, HEADERS_SIZE, 0), self.name)

    def sidecars(self) -> tuple[tuple[int, ...] | None, ...]:
        found: list[tuple[int, ...] | None] = []
        for suffix in SIDECARS:
            try:
                info = os.stat(f"{self.path}{suffix}")
            except FileNotFoundError:
                found.append(None)
            else:
                found.append((info.st_ino, info.st_size, info.st_mtime_ns))
        return tuple(found)

    def glance(self) -> tuple[object, ...]:
        """Headers, sizes and times. The log only grows between checkpoints, and a checkpoint changes the headers."""
        info = os.fstat(self.descriptor)
        headers = os.pread(self.descriptor, HEADERS_SIZE, 0)
        return self.path, info.st_dev, info.st_ino, info.st_mtime_ns, headers, self.sidecars()

    def read_wal(self) -> tuple[bytes, int | None]:
        """The WAL's bytes and inode; nothing and None if there is no WAL."""
        try:
            with open(self.wal_path, "rb") as file:
                return file.read(), os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return b"", None
        except OSError as error:
            raise unreadable(f"{self.name} has a write-ahead log that", error) from error

    def live_state(self) -> State:
        """Headers and the committed part of the WAL that belongs to them, or Unsettled."""
        identity = self.identity()
        headers = self._settled_headers()
        if not headers.live:
            raise Unsettled("older storage")
        data, inode = self.read_wal()
        wal = self._parse(data) if data else Wal(None, None, 0, False)
        if wal.checkpoint or os.path.exists(f"{self.path}.wal.checkpoint"):
            raise Unsettled("checkpoint under way")
        if wal.kept and (wal.iteration, wal.identifier) != (headers.iteration, headers.identifier):
            raise Unsettled("log of another checkpoint")
        if os.pread(self.descriptor, HEADERS_SIZE, 0) != headers.raw:
            raise Unsettled("headers changed")
        return State(identity, headers, data[: wal.kept], inode, None)

    def quiet_state(self) -> State:
        """Headers and everything beside the file, while no writer has it, or Unsettled."""
        if self.locked():
            raise Unsettled("locked")
        identity = self.identity()
        sidecars = self.sidecars()
        headers = self._settled_headers()
        data, inode = self.read_wal()
        if self.locked() or self.sidecars() != sidecars or self.identity() != identity:
            raise Unsettled("a writer came")
        return State(identity, headers, data, inode, sidecars)

    def verify(self, before: State, size: int) -> None:
        """After the bytes were copied: raise Unsettled unless nothing happened that could have torn the copy."""
        if before.sidecars is not None:
            if (
                self.locked()
                or self.sidecars() != before.sidecars
                or self.identity() != before.identity
                or os.fstat(self.descriptor).st_size != size
            ):
                raise Unsettled("a writer came", overtaken=True)
            return
        if self.identity()[:2] != before.identity[:2]:  # also raises if another file is at the path now
            raise Unsettled("file was replaced", overtaken=True)
        data, inode = self.read_wal()
        if before.wal_inode is not None and inode != before.wal_inode:
            raise Unsettled("log was replaced", overtaken=True)
        kept = len(before.wal)
        if data[:kept] != before.wal:
            raise Unsettled("log was rolled back", overtaken=True)
        if kept:
            begun = self._walk(data, kept)
        else:
            wal = self._parse(data) if data else None
            begun = wal is not None and (wal.checkpoint or wal.iteration not in (None, before.headers.iteration))
        if begun or os.path.exists(f"{self.path}.wal.checkpoint"):
            raise Unsettled("checkpoint began", overtaken=True)
        # Last: what was read above is only worth something if no checkpoint has finished since.
        if os.pread(self.descriptor, HEADERS_SIZE, 0) != before.headers.raw:
            raise Unsettled("checkpoint finished", overtaken=True)

    def _settled_headers(self) -> Headers:
        try:
            return self.headers()
        except TornHeader:
            raise Unsettled("torn header", malformed=True) from None

    def _parse(self, data: bytes) -> Wal:
        try:
            return parse_wal(data, self.name)
        except MalformedWal:
            raise Unsettled("malformed log", malformed=True) from None

    def _walk(self, data: bytes, at: int) -> bool:
        try:
            return walk_frames(data, at, self.name)[1]
        except MalformedWal:
            raise Unsettled("malformed log", overtaken=True, malformed=True) from None


@contextmanager
def opened(path: Path) -> Iterator[SourceFile]:
    """The warehouse, open for reading bytes. Raises SourceMissing."""
    file = SourceFile(path)
    try:
        yield file
    finally:
        file.close()
