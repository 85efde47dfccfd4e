"""Reading DuckDB's headers and write-ahead log (WAL) as bytes. The facts relied on are listed in source.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from marimohub.snapshots.errors import NotADuckDBFile, SourceDamaged, UnsupportedFormat

HEADER_SIZE = 4096
HEADERS_SIZE = 3 * HEADER_SIZE
MAGIC = b"DUCK"

# From DuckDB 2.0 on, the main header says 999 and the database header holds the storage version.
MAIN_VERSION_DEPRECATED = 999
STORAGE_VERSION_2_0 = 69
OLD_MAIN_VERSIONS = range(64, 69)  # 0.10 to 1.5
OLD_HEADER_VERSIONS = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 64})

WAL_VERSION_PLAIN = 2
WAL_VERSION_ENCRYPTED = 3
FRAME_VERSION = 98
FRAME_CHECKPOINT = 99
FRAME_FLUSH = 100
_CATALOG_AND_DATA_FRAMES = frozenset({*range(1, 7), *range(8, 15), *range(20, 32)})

_U64 = struct.Struct("<Q")
_FRAME = struct.Struct("<QQ")  # size of the payload, checksum of the payload
_WAL_TYPE_FIELD = b"\x64\x00"  # field id 100, little endian, precedes the type in every frame
_END_OF_OBJECT = b"\xff\xff"


class TornHeader(Exception):
    """A header's checksum does not match: it was read while it was written, or it is damaged."""


class MalformedWal(Exception):
    """The WAL's bytes do not have the expected structure."""


@dataclass(frozen=True)
class Headers:
    """The first 12 KiB of a database file, checked.

    `raw` are the bytes, `identifier` 16 bytes (zeros before storage 1.4), `iteration` the number of the newest
    checkpoint, `block_size` in bytes, `end` the length of a file that has all its blocks (some at the end may be
    free and never written), `live` whether the storage is one whose files can be copied under a writer.
    """

    raw: bytes
    identifier: bytes
    iteration: int
    block_size: int
    end: int
    live: bool


@dataclass(frozen=True)
class Wal:
    """What the WAL holds. `kept` is the length up to the last commit, `checkpoint` whether a marker is in it.

    `identifier` and `iteration` are None where the file is too short or too old to carry them.
    """

    identifier: bytes | None
    iteration: int | None
    kept: int
    checkpoint: bool


def checksum(data: bytes) -> int:
    """DuckDB's block checksum of data whose length is a multiple of 8 bytes."""
    result = 5381
    for (word,) in struct.iter_unpack("<Q", data):
        result ^= (word * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return result


def _check(raw: bytes, offset: int) -> None:
    if _U64.unpack_from(raw, offset)[0] != checksum(raw[offset + 8 : offset + HEADER_SIZE]):
        raise TornHeader


def parse_headers(raw: bytes, name: str) -> Headers:
    """Check the first 12 KiB of a file; `name` is for messages.

    Raises NotADuckDBFile, UnsupportedFormat, SourceDamaged (too short), or TornHeader, which is worth a retry.
    """
    if not raw:
        raise NotADuckDBFile(f"{name} is empty. Point the warehouse setting at a DuckDB database file.")
    if raw[8:12] != MAGIC:
        raise NotADuckDBFile(f"{name} is not a DuckDB database. Point the warehouse setting at one.")
    if len(raw) < HEADERS_SIZE:
        raise SourceDamaged(f"{name} is cut off in its header. Restore it from a backup.")
    _check(raw, 0)
    main_version, *flags = struct.unpack_from("<5Q", raw, 12)
    if flags[0] & 1:
        raise UnsupportedFormat(f"{name} is encrypted, and encrypted warehouses cannot be shared as snapshots.")
    live = main_version == MAIN_VERSION_DEPRECATED
    if any(flags) or not (live or main_version in OLD_MAIN_VERSIONS):
        raise UnsupportedFormat(_newer(name))
    _check(raw, HEADER_SIZE)
    _check(raw, 2 * HEADER_SIZE)
    newest = max((raw[HEADER_SIZE : 2 * HEADER_SIZE], raw[2 * HEADER_SIZE :]), key=_iteration)
    block_count, block_size, _vector, storage = struct.unpack_from("<4Q", newest, 32)
    if (live and storage != STORAGE_VERSION_2_0) or (not live and storage not in OLD_HEADER_VERSIONS):
        raise UnsupportedFormat(_newer(name))
    block_size = block_size or 262144
    end = HEADERS_SIZE + block_count * block_size
    return Headers(raw, raw[124:140], _iteration(newest), block_size, end, live)


def _iteration(header: bytes) -> int:
    return int(_U64.unpack_from(header, 8)[0])


def _newer(name: str) -> str:
    return f"{name} has a storage format that this version does not know. Update DuckDB and MarimoHub."


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise IndexError
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _parse_version_entry(data: bytes, name: str) -> tuple[bytes | None, int | None, int]:
    """The entry at the start of every WAL, which has neither size nor checksum: identifier, iteration, length."""
    if len(data) < 5:
        raise IndexError
    if data[:2] != _WAL_TYPE_FIELD or data[2] != FRAME_VERSION or data[3:5] != b"\x65\x00":
        raise MalformedWal
    version, at = _varint(data, 5)
    if version == WAL_VERSION_ENCRYPTED:
        raise UnsupportedFormat(f"{name} is encrypted, and encrypted warehouses cannot be shared as snapshots.")
    if version != WAL_VERSION_PLAIN:
        raise UnsupportedFormat(f"{name} has a write-ahead log of an unknown version. Update DuckDB and MarimoHub.")
    identifier: bytes | None = None
    iteration: int | None = None
    if data[at : at + 2] == b"\x66\x00":
        count, at = _varint(data, at + 2)
        values = bytearray()
        for _ in range(count):
            value, at = _varint(data, at)
            values.append(value & 0xFF)
        identifier = bytes(values)
    if data[at : at + 2] == b"\x67\x00":
        iteration, at = _varint(data, at + 2)
    if data[at : at + 2] != _END_OF_OBJECT:
        if len(data) < at + 2:
            raise IndexError
        raise MalformedWal
    return identifier, iteration, at + 2


def parse_wal(data: bytes, name: str) -> Wal:
    """Walk the frames of a WAL as far as they are complete.

    Frames after the last FLUSH belong to a transaction that has not committed, or were cut off while written.
    Raises MalformedWal, or UnsupportedFormat for a version or a frame type that is not known.
    """
    try:
        identifier, iteration, at = _parse_version_entry(data, name)
    except IndexError:
        return Wal(None, None, 0, False)  # the writer is creating it: no commit yet
    kept, checkpoint = walk_frames(data, at, name)
    return Wal(identifier, iteration, kept, checkpoint)


def walk_frames(data: bytes, at: int, name: str) -> tuple[int, bool]:
    """From frame offset `at`: the offset after the last FLUSH (0 if none), and whether a CHECKPOINT is there."""
    end = len(data)
    kept = 0
    unpack = _FRAME.unpack_from
    while at + 19 <= end:
        size = unpack(data, at)[0]
        if data[at + 16 : at + 18] != _WAL_TYPE_FIELD or size < 3:
            raise MalformedWal
        kind = data[at + 18]
        if kind == FRAME_CHECKPOINT:
            return kept, True
        at += 16 + size
        if at > end:
            break
        if kind == FRAME_FLUSH:
            kept = at
        elif kind not in _CATALOG_AND_DATA_FRAMES:
            raise UnsupportedFormat(
                f"{name} has an entry of unknown type {kind} in its write-ahead log. Update DuckDB and MarimoHub."
            )
    return kept, False
