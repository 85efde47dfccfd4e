"""The on-disk facts that snapshots rely on, held against files that the installed DuckDB writes."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import duckdb
import pytest

from marimohub.snapshots.errors import NotADuckDBFile, SourceDamaged, UnsupportedFormat
from marimohub.snapshots.layout import (
    HEADERS_SIZE,
    MalformedWal,
    TornHeader,
    checksum,
    parse_headers,
    parse_wal,
    walk_frames,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def database(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(str(tmp_path / "d.duckdb"))
    connection.execute("CREATE TABLE t AS SELECT range AS i FROM range(10)")
    connection.execute("CHECKPOINT")
    connection.execute("SET checkpoint_threshold = '1GB'")
    yield connection
    connection.close()


def headers_of(tmp_path: Path, name: str = "d.duckdb") -> bytes:
    return (tmp_path / name).read_bytes()[:HEADERS_SIZE]


def wal_of(tmp_path: Path) -> bytes:
    return (tmp_path / "d.duckdb.wal").read_bytes()


def test_a_checkpoint_raises_the_iteration_and_writes_the_other_header(tmp_path, database):
    before = headers_of(tmp_path)
    database.execute("INSERT INTO t VALUES (1)")
    database.execute("CHECKPOINT")
    after = headers_of(tmp_path)
    assert parse_headers(after, "x").iteration == parse_headers(before, "x").iteration + 1
    assert (before[4096:8192] == after[4096:8192]) != (before[8192:] == after[8192:])


def test_a_commit_changes_the_log_and_not_the_headers(tmp_path, database):
    before = headers_of(tmp_path)
    database.execute("INSERT INTO t VALUES (1)")
    first = wal_of(tmp_path)
    database.execute("INSERT INTO t VALUES (2)")
    assert headers_of(tmp_path) == before
    assert wal_of(tmp_path).startswith(first)
    wal = parse_wal(first, "x")
    headers = parse_headers(before, "x")
    assert (wal.kept, wal.checkpoint) == (len(first), False)
    assert (wal.identifier, wal.iteration) == (headers.identifier, headers.iteration)


def test_every_kind_of_statement_leaves_a_log_that_is_understood_to_its_end(tmp_path, database):
    for statement in (
        "CREATE SCHEMA s", "CREATE TABLE s.u(i INT PRIMARY KEY, v VARCHAR)", "INSERT INTO s.u VALUES (1, 'a')",
        "UPDATE s.u SET v = 'b'", "DELETE FROM s.u", "ALTER TABLE s.u ADD COLUMN z INT DEFAULT 5",
        "CREATE INDEX ix ON t(i)", "DROP INDEX ix", "CREATE VIEW w AS FROM t", "DROP VIEW w", "CREATE SEQUENCE q",
        "SELECT nextval('q')", "DROP SEQUENCE q", "CREATE MACRO m(a) AS a + 1", "DROP MACRO m",
        "CREATE MACRO tm() AS TABLE FROM t", "DROP MACRO TABLE tm", "CREATE TYPE e AS ENUM ('a', 'b')", "DROP TYPE e",
        "COMMENT ON TABLE t IS 'x'", "INSERT INTO t SELECT range FROM range(300000)", "TRUNCATE t", "DROP TABLE s.u",
        "DROP SCHEMA s",
    ):  # fmt: skip
        database.execute(statement)
        data = wal_of(tmp_path)
        wal = parse_wal(data, "x")
        assert (wal.kept, wal.checkpoint) == (len(data), False), statement


def test_a_log_cut_anywhere_keeps_only_whole_transactions(tmp_path, database):
    ends = [0]
    for number in range(3):
        database.execute("INSERT INTO t VALUES (?)", [number])
        ends.append(len(wal_of(tmp_path)))
    data = wal_of(tmp_path)
    for cut in range(len(data) + 1):
        assert parse_wal(data[:cut], "x").kept == max(end for end in ends if end <= cut)


def test_a_checkpoint_marker_is_seen_also_after_the_last_commit(tmp_path, database):
    database.execute("INSERT INTO t VALUES (1)")
    data = wal_of(tmp_path)
    payload = b"\x64\x00\x63\x65\x00\x01\xff\xff"
    marked = data + struct.pack("<QQ", len(payload), checksum(payload)) + payload
    assert parse_wal(marked, "x").checkpoint
    assert walk_frames(marked, len(data), "x") == (0, True)


def test_blocks_that_the_log_refers_to_are_not_reused_before_a_checkpoint(tmp_path, database):
    path = tmp_path / "d.duckdb"
    database.execute("CREATE TABLE big AS SELECT range AS i, hash(range) AS h FROM range(300000)")
    before = path.read_bytes()
    assert parse_wal(wal_of(tmp_path), "x").kept < 200_000, "a bulk load must be in the file, not in the log"
    for turn in range(4):
        database.execute("DROP TABLE big")
        database.execute(f"CREATE TABLE big AS SELECT range AS i, hash(range + {turn}) AS h FROM range(300000)")
        database.execute("ALTER TABLE big ALTER i TYPE VARCHAR")
        database.execute("TRUNCATE big")
    after = path.read_bytes()
    assert after[: len(before)] == before
    assert len(after) > len(before)


def test_the_log_lies_beside_the_real_file(tmp_path, database):
    os.symlink(tmp_path / "d.duckdb", tmp_path / "link.duckdb")
    database.close()
    with duckdb.connect(str(tmp_path / "link.duckdb")) as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        assert (tmp_path / "d.duckdb.wal").exists()
        assert not os.path.lexists(tmp_path / "link.duckdb.wal")


@pytest.mark.parametrize(
    ("storage", "live"), [("v1.0.0", False), ("v1.2.0", False), ("v1.4.0", False), ("v1.5.0", False), ("v2.0.0", True)]
)
def test_every_readable_storage_version_is_recognised(tmp_path, storage, live):
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{tmp_path}/s.duckdb' AS s (STORAGE_VERSION '{storage}')")
        connection.execute("CREATE TABLE s.t AS SELECT 1 AS i")
        connection.execute("DETACH s")
    headers = parse_headers(headers_of(tmp_path, "s.duckdb"), "x")
    assert headers.live is live
    assert headers.end <= (tmp_path / "s.duckdb").stat().st_size


def rewritten(raw: bytes, offset: int, value: bytes) -> bytes:
    """The headers with some bytes replaced and all checksums made right again."""
    changed = bytearray(raw)
    changed[offset : offset + len(value)] = value
    for start in (0, 4096, 8192):
        changed[start : start + 8] = struct.pack("<Q", checksum(bytes(changed[start + 8 : start + 4096])))
    return bytes(changed)


def test_newer_storage_is_refused_and_not_guessed(tmp_path, database):
    raw = headers_of(tmp_path)
    assert parse_headers(rewritten(raw, 12, struct.pack("<Q", 999)), "x").live
    for offset, value in ((12, 1000), (12, 70), (12, 63), (20, 2), (28, 1)):
        with pytest.raises(UnsupportedFormat, match="Update DuckDB"):
            parse_headers(rewritten(raw, offset, struct.pack("<Q", value)), "x")
    newer = rewritten(rewritten(raw, 4096 + 56, struct.pack("<Q", 70)), 8192 + 56, struct.pack("<Q", 70))
    with pytest.raises(UnsupportedFormat, match="Update DuckDB"):
        parse_headers(newer, "x")


def test_a_flipped_bit_in_any_header_is_noticed(tmp_path, database):
    raw = headers_of(tmp_path)
    for offset in (60, 4096 + 16, 8192 + 3000):
        broken = bytearray(raw)
        broken[offset] ^= 4
        with pytest.raises(TornHeader):
            parse_headers(bytes(broken), "x")


def test_other_files_are_no_databases():
    with pytest.raises(NotADuckDBFile, match="is empty"):
        parse_headers(b"", "The file")
    with pytest.raises(NotADuckDBFile, match="not a DuckDB database"):
        parse_headers(b"hello, world\n" * 2000, "The file")
    with pytest.raises(SourceDamaged, match="cut off"):
        parse_headers(b"\0" * 8 + b"DUCK" + b"\0" * 100, "The file")


def test_an_unknown_log_is_refused(tmp_path, database):
    database.execute("INSERT INTO t VALUES (1)")
    data = wal_of(tmp_path)
    with pytest.raises(UnsupportedFormat, match="unknown version"):
        parse_wal(data[:5] + b"\x04" + data[6:], "x")
    with pytest.raises(UnsupportedFormat, match="encrypted"):
        parse_wal(data[:5] + b"\x03" + data[6:], "x")
    with pytest.raises(MalformedWal):
        parse_wal(b"garbage" * 20, "x")
    with pytest.raises(MalformedWal):
        parse_wal(data + b"\0" * 64, "x")
    with pytest.raises(UnsupportedFormat, match="unknown type 77"):
        parse_wal(data + struct.pack("<QQ", 5, 0) + b"\x64\x00\x4d\xff\xff", "x")
