"""What is in a raw copy: its catalogue, and for each table a fingerprint of its content.

A fingerprint is a SHA-256 over what DuckDB reads to answer any query on the table: the table's columns, the segments of
each column with the bytes of the blocks that hold them, and which rows are deleted. Reading blocks is some ten times
as fast as hashing values. `pragma_storage_info` alone would not do: block ids are used again for other content, it
does not show deletes, and a segment without a block keeps its value in rounded statistics. So the blocks' bytes are
hashed (their own 64-bit checksums are the same after two words changed places), rows that are left are counted and
named where some were deleted, and columns that have values outside of blocks are hashed by value.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from marimohub.snapshots.engine import full_name
from marimohub.snapshots.layout import HEADERS_SIZE
from marimohub.snapshots.schema import Column, Other, Table, View, WarehouseSchema, table_key
from marimohub.snapshots.types import quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Types whose content was checked to be in the segments that pragma_storage_info lists.
_PLAIN = frozenset(
    {
        "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
        "HUGEINT", "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "VARCHAR", "BLOB", "DATE", "TIME", "TIMESTAMP",
        "TIMESTAMP WITH TIME ZONE", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "UUID", "INTERVAL", "ENUM",
    }
)  # fmt: skip

# Of a segment; where it lies is no part of its content, save for its place in the block.
_SEGMENT = (
    "row_group_id", "column_path", "segment_id", "segment_type", "start", "count", "compression", "stats",
    "has_updates", "block_offset",
)  # fmt: skip

# Functions stand by their full names: a macro of the warehouse with the same name would come first.
_SYSTEM = "system.main"

_OTHERS = """
SELECT 'macro', {dotted}(schema_name, function_name) FROM {system}.duckdb_functions()
    WHERE NOT internal AND function_type IN ('macro', 'table_macro')
UNION SELECT 'sequence', {dotted}(schema_name, sequence_name) FROM {system}.duckdb_sequences()
UNION SELECT 'type', {dotted}(schema_name, type_name) FROM {system}.duckdb_types() WHERE NOT internal
UNION SELECT 'index', {dotted}(schema_name, index_name) FROM {system}.duckdb_indexes()
UNION SELECT 'constraint', {system}.concat({dotted}(schema_name, table_name), ': ', {system}.lower(constraint_type))
    FROM {system}.duckdb_constraints()
UNION SELECT 'default', {dotted}(schema_name, table_name, column_name) FROM {system}.duckdb_columns()
    WHERE NOT internal AND column_default IS NOT NULL AND NOT is_generated
UNION SELECT 'comment', {dotted}(schema_name, table_name) FROM {system}.duckdb_tables() WHERE comment IS NOT NULL
UNION SELECT 'comment', {dotted}(schema_name, view_name) FROM {system}.duckdb_views()
    WHERE comment IS NOT NULL AND NOT internal
UNION SELECT 'comment', {dotted}(schema_name, table_name, column_name) FROM {system}.duckdb_columns()
    WHERE comment IS NOT NULL AND NOT internal
ORDER BY ALL
""".replace("{dotted}(", "{system}.concat_ws('.', ").replace("{system}", _SYSTEM)

_ROWS_LEFT = f"{_SYSTEM}.sum({_SYSTEM}.hash(rowid)::HUGEINT), {_SYSTEM}.bit_xor({_SYSTEM}.hash(rowid))"


def read_schema(connection: DuckDBPyConnection) -> WarehouseSchema:
    """The catalogue of the connected database."""
    columns: dict[tuple[str, str], list[Column]] = {}
    for schema, table, name, kind, generation in connection.execute(
        "SELECT schema_name, table_name, column_name, data_type, generation_expression "
        "FROM system.main.duckdb_columns() WHERE NOT internal ORDER BY schema_name, table_name, column_index"
    ).fetchall():
        columns.setdefault((schema, table), []).append(Column(name, kind, generation or None))
    tables = []
    for schema, table in connection.execute(
        "SELECT schema_name, table_name FROM system.main.duckdb_tables() "
        "WHERE NOT internal AND NOT temporary ORDER BY ALL"
    ).fetchall():
        count = connection.execute(
            f"SELECT {_SYSTEM}.count_star() FROM {full_name(connection, schema, table)}"
        ).fetchone()
        tables.append(Table(schema, table, tuple(columns.get((schema, table), ())), count[0] if count else 0))
    views = [
        View(schema, view, tuple(columns.get((schema, view), ())), sql)
        for schema, view, sql in connection.execute(
            "SELECT schema_name, view_name, sql FROM system.main.duckdb_views() "
            "WHERE NOT internal AND NOT temporary ORDER BY ALL"
        ).fetchall()
    ]
    others = [Other(kind, name) for kind, name in connection.execute(_OTHERS).fetchall()]
    return WarehouseSchema(tuple(tables), tuple(views), tuple(others))


def fingerprints(
    connection: DuckDBPyConnection, path: str, schema: WarehouseSchema, block_size: int, threads: int
) -> dict[str, str]:
    """The fingerprint of each table, by `table_key`. `path` is the connected file, which nobody may be writing to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        segments = {table_key(table.schema, table.name): _segments(connection, table) for table in schema.tables}
        blocks = sorted({block for found in segments.values() for segment in found for block in _blocks(segment)})
        with ThreadPoolExecutor(threads) as pool:
            hashes = dict(zip(blocks, pool.map(lambda b: _hash_block(descriptor, b, block_size), blocks), strict=True))
    finally:
        os.close(descriptor)
    collated = _collated(connection)
    return {
        key: _fingerprint(connection, table, collated.get(key), segments[key], hashes)
        for key, table in ((table_key(table.schema, table.name), table) for table in schema.tables)
    }


def _collated(connection: DuckDBPyConnection) -> dict[str, str]:
    """Statements of the tables with collations, which filters depend on and no column's type shows."""
    found = connection.execute("SELECT schema_name, table_name, sql FROM system.main.duckdb_tables()").fetchall()
    return {table_key(schema, name): sql for schema, name, sql in found if " COLLATE " in sql.upper()}


def _segments(connection: DuckDBPyConnection, table: Table) -> list[dict[str, Any]]:
    name = full_name(connection, table.schema, table.name)
    cursor = connection.execute("SELECT * FROM system.main.pragma_storage_info(?)", [name])
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _blocks(segment: dict[str, Any]) -> list[int]:
    found = [segment["block_id"], *(segment["additional_block_ids"] or ())]
    return [block for block in found if block is not None and block >= 0]


def _hash_block(descriptor: int, block: int, size: int) -> bytes:
    return hashlib.sha256(os.pread(descriptor, size, HEADERS_SIZE + block * size)).digest()


def _fingerprint(
    connection: DuckDBPyConnection,
    table: Table,
    collation: str | None,
    segments: list[dict[str, Any]],
    hashes: dict[int, bytes],
) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([[[c.name, c.type, c.generation] for c in table.columns], collation]).encode())
    by_value: set[str] = set()
    counts: dict[str, int] = {}
    for segment in segments:
        blocks = _blocks(segment)
        validity = segment["segment_type"] == "VALIDITY"
        if not segment["persistent"] or segment["has_updates"] or (not blocks and not validity):
            by_value.add(segment["column_name"])
        counts[segment["column_path"]] = counts.get(segment["column_path"], 0) + segment["count"]
        # where a segment lies is no part of its content, save for its place in the block
        digest.update(json.dumps([segment[key] for key in _SEGMENT], default=str, sort_keys=True).encode())
        for block in blocks:
            digest.update(hashes[block])
    plain = [column for column in table.columns if column.generation is None]
    by_value.update(column.name for column in plain if column.type.partition("(")[0] not in _PLAIN)
    stored = max(counts.values(), default=0)
    expressions = [_ROWS_LEFT] if table.rows != stored else []
    expressions += _by_value(sorted(by_value & {column.name for column in plain}))
    if expressions and table.rows:
        name = full_name(connection, table.schema, table.name)
        digest.update(repr(connection.execute(f"SELECT {', '.join(expressions)} FROM {name}").fetchone()).encode())
    digest.update(repr(table.rows).encode())
    return digest.hexdigest()


def _by_value(columns: Iterable[str]) -> list[str]:
    # as text: equal values of some types (nested, VARIANT) hash alike although they are written differently
    return [
        f"{_SYSTEM}.sum({_SYSTEM}.hash(rowid, {quoted(c)}::VARCHAR)::HUGEINT), "
        f"{_SYSTEM}.bit_xor({_SYSTEM}.hash({quoted(c)}::VARCHAR, rowid))"
        for c in columns
    ]
