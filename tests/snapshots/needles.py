"""A warehouse full of secrets, and the search for them in files.

Secrets are of letters that nothing else is written in, or random numbers: any eight bytes of one name it.
"""

from __future__ import annotations

import random
import re
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from marimohub.snapshots.plan import ColumnPlan, Plan, TablePlan, ViewPlan

LETTERS = "GHJKLMNPQRSTUVWX"
LENGTH = 24
# chimp and patas cannot be forced any more
COMPRESSIONS = (
    "auto", "uncompressed", "dictionary", "fsst", "dict_fsst", "zstd", "rle", "bitpacking", "alp", "alprd", "roaring",
    "pfor",
)  # fmt: skip
NUMBER = re.compile(rb"\d{15,}")


@dataclass
class Secrets:
    """Eight-byte words that no governed file may hold, and numbers as they are written."""

    words: set[int] = field(default_factory=set)
    numbers: set[bytes] = field(default_factory=set)
    chance: random.Random = field(default_factory=random.Random)

    def text(self) -> str:
        """A new secret."""
        made = "".join(self.chance.choices(LETTERS, k=LENGTH))
        self.add(made.encode())
        return made

    def add(self, value: bytes) -> None:
        self.words.update(int.from_bytes(value[at : at + 8], "little") for at in range(0, len(value) - 7, 8))

    def add_number(self, value: int, width: int = 8) -> None:
        self.words.add(int.from_bytes(value.to_bytes(width, "little", signed=True)[:8], "little"))
        self.numbers.add(str(value).encode())

    def among(self, data: bytes) -> set[int]:
        """The secrets' words that are in these bytes, at whatever place."""
        found: set[int] = set()
        for offset in range(8):
            end = offset + (len(data) - offset) // 8 * 8
            words = memoryview(data)[offset:end].cast("Q")
            if not self.words.isdisjoint(words):
                found |= self.words.intersection(words)
        return found

    def dumped(self, text: bytes) -> set[bytes]:
        """The secrets that are written in a text."""
        found = {word.to_bytes(8, "little") for word in self.among(text)}
        return found | (self.numbers & set(NUMBER.findall(text)))


def _text(column: str, seed: int, row: str = "i") -> str:
    digest = f"sha256('{seed} {column} ' || ({row}))"
    return f"left(translate({digest}, '0123456789abcdef', '{LETTERS}'), {LENGTH})"


def _number(column: str, seed: int) -> str:
    return f"(hash('{seed} {column} ' || i) >> 3)::BIGINT"


def columns(seed: int) -> dict[str, tuple[str, str]]:
    """Governed columns: type and value."""

    def text(column: str, row: str = "i") -> str:
        return _text(column, seed, row)

    def number(column: str) -> str:
        return _number(column, seed)

    return {
        "s": ("VARCHAR", text("s")),
        "twice": ("VARCHAR", text("twice", "i // 2")),
        "mail": ("VARCHAR", f"{text('mail')} || '@example.org'"),
        "long": ("VARCHAR", f"repeat({text('long')}, if(i % 700 = 1, 15000, if(i % 50 = 1, 200, 20)))"),
        "n": ("BIGINT", number("n")),
        "d": ("DOUBLE", f"{number('d')} / 7.0"),
        "dec": ("DECIMAL(18,2)", f"({number('dec')} % 1000000000000000)::DECIMAL(18,2)"),
        "h": ("HUGEINT", number("h")),
        "u": ("UUID", f"md5('{seed} u ' || i)::UUID"),
        "ts": ("TIMESTAMP", f"make_timestamp({number('ts')} % 1500000000000000)"),
        "b": ("BLOB", f"encode({text('b')})"),
        "e": (f"mood_{seed}", text("e", "i % 40")),
        "nested": ("STRUCT(a VARCHAR, l VARCHAR[])", f"{{'a': {text('na')}, 'l': [{text('nb')}, {text('nc')}]}}"),
        "m": ("MAP(VARCHAR, BIGINT)", f"MAP {{{text('mk')}: {number('mv')}}}"),
        "j": ("JSON", f"'[\"' || {text('j')} || '\"]'"),
        "v": ("VARIANT", f"{text('v')}::VARIANT"),
    }


def make_warehouse(path: Path, rows: int, seed: int) -> Secrets:
    """A warehouse with a table per compression, and secrets everywhere else where DuckDB keeps texts."""
    secrets = Secrets(chance=random.Random(seed))
    with duckdb.connect(str(path)) as connection:
        for number, compression in enumerate(COMPRESSIONS):
            connection.execute(f"SET force_compression = '{compression}'")
            _make_table(connection, secrets, number, rows)
            connection.execute("CHECKPOINT")
        for statement in (
            f'CREATE TABLE "left {secrets.text()}" AS SELECT \'{secrets.text()}\' AS "{secrets.text()}"',
            f"CREATE VIEW hidden AS SELECT '{secrets.text()}' AS x",
            f"CREATE MACRO hidden_macro(x) AS x || '{secrets.text()}'",
            f"CREATE MACRO hidden_table() AS TABLE SELECT '{secrets.text()}'",
            f'CREATE SEQUENCE "numbers {secrets.text()}" START 1234567890123456',
            f"CREATE TYPE spare AS ENUM ('{secrets.text()}')",
            f'CREATE SCHEMA "aside {secrets.text()}"',
            f"COMMENT ON VIEW hidden IS '{secrets.text()}'",
            *(f"DROP TABLE dropped_{number}" for number in range(len(COMPRESSIONS))),
            "CHECKPOINT",
        ):
            connection.execute(statement)
    return secrets


def _make_table(connection: duckdb.DuckDBPyConnection, secrets: Secrets, number: int, rows: int) -> None:
    governed = columns(number)
    connection.execute(f"CREATE TYPE mood_{number} AS ENUM (SELECT {_text('e', number)} FROM range(40) r(i))")
    connection.execute(
        f"CREATE TABLE t{number} (id BIGINT, region VARCHAR, note VARCHAR DEFAULT '{secrets.text()}', "
        + ", ".join(f"{name} {kind}" for name, (kind, _value) in governed.items())
        + f", g VARCHAR AS (s || '{secrets.text()}'), CHECK (s <> '{secrets.text()}'))"
    )
    values = ", ".join(f"{value} AS {name}" for name, (_kind, value) in governed.items())
    select = (
        f"SELECT i, if(i % 3 = 0, 'drop', 'keep'), if(i % 3 = 0, {_text('note', number)}, 'public ' || i), {values} "
        f"FROM range({rows}) r(i)"
    )
    connection.execute(f"INSERT INTO t{number} {select}")
    connection.execute(f"CREATE TABLE dropped_{number} AS SELECT '{number}' || s || s AS s, n + 1 AS n FROM t{number}")
    connection.execute(f"COMMENT ON TABLE t{number} IS '{secrets.text()}'")
    connection.execute(f"COMMENT ON COLUMN t{number}.s IS '{secrets.text()}'")
    _learn(connection, secrets, f"t{number}")
    connection.execute("CHECKPOINT")
    connection.execute(f"DELETE FROM t{number} WHERE id % 10 = 7")
    connection.execute(f"UPDATE t{number} SET s = '{secrets.text()}', n = 5 WHERE id % 500 = 1")


def _learn(connection: duckdb.DuckDBPyConnection, secrets: Secrets, table: str) -> None:
    texts = (
        "s, twice, mail[:24], long[:24], b::VARCHAR, e::VARCHAR, nested.a, nested.l[1], nested.l[2], map_keys(m)[1], "
    )
    texts += "j[3:26], v::VARCHAR, if(id % 3 = 0, note, s)"
    for row in connection.execute(f"SELECT {texts} FROM {table}").fetchall():
        for text in row:
            secrets.add(text.encode())
    numbers = "n, h::BIGINT, epoch_us(ts), replace(dec::VARCHAR, '.', '')::BIGINT, map_values(m)[1]"
    for row in connection.execute(f"SELECT {numbers} FROM {table}").fetchall():
        for value in row:
            secrets.add_number(value)
    for d, u in connection.execute(f"SELECT d, u FROM {table}").fetchall():
        secrets.add(struct.pack("<d", d))
        secrets.add(u.bytes)
        secrets.add(_flipped(u))


def _flipped(value: uuid.UUID) -> bytes:
    """As DuckDB keeps it: a number whose highest bit is turned."""
    return (value.int ^ (1 << 127)).to_bytes(16, "little")


def make_plan(chance: random.Random, tables: Iterable[int]) -> Plan:
    """A plan that masks each governed column in some way and keeps the rows of one region."""
    made = []
    for number in tables:
        plans = [ColumnPlan("id", '"id"'), ColumnPlan("note", '"note"')]
        for name, (kind, _value) in {**columns(number), "g": ("VARCHAR", "")}.items():
            sql = chance.choice(_masks(name, kind))
            if sql is not None:
                plans.append(ColumnPlan(name, sql))
        # a constant of its own makes every plan, so every part, a new one
        parameters = {"p0": "keep", "p1": f"plan {chance.random()}"}
        plans.append(ColumnPlan("which", "CAST($p1 AS VARCHAR)"))
        chance.shuffle(plans)
        made.append(TablePlan("main", f"t{number}", tuple(plans), '("region" = $p0)', parameters))
    views = (
        ViewPlan("main", "public", "CREATE VIEW public AS SELECT id, note FROM t0"),
        ViewPlan("main", "unbound", "CREATE VIEW unbound AS SELECT region FROM t0"),
    )
    return Plan(tuple(made), views)


def _masks(name: str, kind: str) -> list[str | None]:
    raw = f'"{name}"'
    text = f"CAST({raw} AS VARCHAR)"
    shown = f"system.main.concat(system.main.left({text}, 1), '***', system.main.right({text}, 1))"
    masks: list[str | None] = [
        None,
        f"CASE WHEN false THEN {raw} END",
        "CAST(NULL AS VARCHAR)",
        "'hidden'",
        f'system.main.left(system.main.sha256(system.main."||"($masking_key, {text})), 32)',
        f"CASE WHEN {raw} IS NULL THEN NULL WHEN system.main.length({text}) < 5 THEN '***' ELSE {shown} END",
    ]
    if name == "mail":
        masks.append(f"system.main.concat('***@', system.main.split_part({text}, '@', -1))")
    if kind in ("BIGINT", "HUGEINT"):
        masks += ["0", f"TRY(CAST(CAST({raw} AS HUGEINT) // 1000000000000000 * 1000000000000000 AS BIGINT))"]
    if kind in ("DOUBLE", "DECIMAL(18,2)"):
        masks += ["0", f"system.main.floor(CAST({raw} AS DOUBLE) / 1e12) * 1e12"]
    if kind == "TIMESTAMP":
        masks += [f"CAST(system.main.date_trunc('{unit}', {raw}) AS TIMESTAMP)" for unit in ("year", "month")]
    return masks


def dump(path: Path) -> bytes:
    """All that DuckDB tells of a file: every row, the catalogue, and the statistics of its segments."""
    said: list[str] = []
    with duckdb.connect(str(path), read_only=True) as connection:
        names = connection.execute(
            "SELECT schema_name, table_name FROM duckdb_tables() UNION ALL "
            "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal"
        ).fetchall()
        for schema, table in names:
            said += map(repr, connection.execute(f'SELECT COLUMNS(*)::VARCHAR FROM "{schema}"."{table}"').fetchall())
        for kind in (
            "tables",
            "views",
            "columns",
            "sequences",
            "indexes",
            "constraints",
            "types",
            "schemas",
            "functions",
        ):
            internal = "" if kind in ("sequences", "indexes", "constraints") else "WHERE NOT internal"
            said += map(repr, connection.execute(f"SELECT * FROM duckdb_{kind}() {internal}").fetchall())
        for schema, table in names:
            if (schema, table) != ("main", "public"):
                found = connection.execute("SELECT * FROM pragma_storage_info(?)", [f'"{schema}"."{table}"']).fetchall()
                said += map(repr, found)
    return "\n".join(said).encode()


def build_in_one_process(raw: Path, plan: Plan, out: Path, memory: str, threads: int) -> None:
    """The control: the same masks, by a process that has read the raw data and writes the file that people get."""
    with duckdb.connect(config={"memory_limit": memory, "threads": threads}) as connection:
        connection.execute(f"SET temp_directory = '{out.parent / 'spill'}'")
        connection.execute(f"ATTACH '{raw}' AS raw (READ_ONLY)")
        connection.execute(f"ATTACH '{out}' AS made")
        connection.execute("USE raw")
        for table in plan.tables:
            connection.execute(f"SELECT * FROM {table.name} ORDER BY s").fetchall()
            columns = ", ".join(f"{column.sql} AS {column.name}" for column in table.columns)
            values = {**table.parameters, "masking_key": "00"}
            used = {name: value for name, value in values.items() if f"${name}" in f"{columns} {table.where}"}
            connection.execute(
                f"CREATE TABLE made.{table.name} AS SELECT {columns} FROM {table.name} WHERE {table.where}", used
            )
        connection.execute("CHECKPOINT made")
