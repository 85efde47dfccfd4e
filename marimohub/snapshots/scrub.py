"""Overwrites whatever a closed DuckDB file holds besides its present content: free blocks and free metadata.

Source: DuckDB 2.0's format, seen in its files and in src/storage/metadata/metadata_manager.{hpp,cpp}. A block is
`block_size` bytes from 3 * 4096 on, with a u64 checksum in front; a metadata block is divided into 64 pieces of
(block_size - 8) / 64 bytes, rounded down to a multiple of 8, from byte 8 on. `pragma_storage_info` names the blocks of
tables, `pragma_metadata_info` those of metadata with their free pieces; together they are all used blocks, which is
checked here against DuckDB's own count, as is the checksum of each metadata block that is rewritten.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

import duckdb

from marimohub.snapshots.engine import full_name
from marimohub.snapshots.layout import HEADERS_SIZE, checksum

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PIECES = 64
_CHECKSUM = struct.Struct("<Q")
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_ZEROS = bytes(1024 * 1024)


class Unscrubbable(Exception):
    """The file's structure is not as described; nothing was changed after that was seen."""


def scrub(path: str) -> None:
    """Fill everything that the database does not use with zeros. Nobody may have the file open.

    Raises:
        Unscrubbable, duckdb.Error, OSError: the file must not be used.
    """
    with duckdb.connect(path, read_only=True) as connection:
        size, total, used_count = _sizes(connection)
        tables = table_blocks(connection)
        metadata = dict(connection.execute("SELECT block_id, free_list FROM pragma_metadata_info()").fetchall())
    used = set(metadata).union(*tables.values())
    if len(used) != used_count or any(block >= total for block in used):
        raise Unscrubbable(f"{len(used)} blocks are known, {used_count} are in use")
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        end = os.fstat(descriptor).st_size
        for block, free in metadata.items():
            _scrub_metadata(descriptor, block, size, free)
        for first, count in _runs(block for block in range(total) if block not in used):
            _zero(descriptor, HEADERS_SIZE + first * size, min(count * size, end - HEADERS_SIZE - first * size))
        _zero(descriptor, HEADERS_SIZE + total * size, end - HEADERS_SIZE - total * size)
    finally:
        os.close(descriptor)


def table_blocks(connection: DuckDBPyConnection) -> dict[tuple[str, str], set[int]]:
    """The blocks that each table's data is in; small tables share blocks."""
    found = {}
    for schema, name in connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall():
        blocks: set[int] = set()
        for block, more in connection.execute(
            "SELECT block_id, additional_block_ids FROM pragma_storage_info(?)", [full_name(connection, schema, name)]
        ).fetchall():
            blocks.update(one for one in (block, *(more or ())) if one is not None and one >= 0)
        found[schema, name] = blocks
    return found


def _sizes(connection: DuckDBPyConnection) -> tuple[int, int, int]:
    row = connection.execute("SELECT block_size, total_blocks, used_blocks FROM pragma_database_size()").fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def _scrub_metadata(descriptor: int, block: int, size: int, free: list[int]) -> None:
    offset = HEADERS_SIZE + block * size
    data = bytearray(os.pread(descriptor, size, offset))
    if _CHECKSUM.unpack_from(data)[0] != checksum(bytes(data[8:])):
        raise Unscrubbable(f"metadata block {block} has another checksum")
    piece = (size - 8) // _PIECES // 8 * 8
    for index in free:
        data[8 + index * piece : 8 + (index + 1) * piece] = bytes(piece)
    data[8 + _PIECES * piece :] = bytes(size - 8 - _PIECES * piece)
    _CHECKSUM.pack_into(data, 0, checksum(bytes(data[8:])))
    os.pwrite(descriptor, data, offset)


def _runs(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbouring numbers as (first, count)."""
    runs = []
    for _, group in groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
        members = [block for _, block in group]
        runs.append((members[0], len(members)))
    return runs


def _zero(descriptor: int, offset: int, length: int) -> None:
    """Zeros from `offset` on: a hole where the file system can, else written."""
    if length <= 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    punched = libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_longlong(offset), ctypes.c_longlong(length))
    while punched != 0 and length > 0:
        written = os.pwrite(descriptor, _ZEROS[:length], offset)
        offset, length = offset + written, length - written
