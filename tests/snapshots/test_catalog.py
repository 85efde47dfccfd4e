"""Fingerprints change with a table's content and with nothing else; the catalogue names everything."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from marimohub.snapshots.describe_process import describe
from marimohub.snapshots.schema import Column, Other, Table, WarehouseSchema, table_key

LONG = "'long ' || i || repeat('x', 9000)"
COLUMNS = (
    "i, i * 3 AS n, i / 7 AS d, 'name ' || i AS s, i % 3 = 0 AS b, {'a': i, 'b': [i, i + 1]} AS nested, "
    "7 AS same, NULL::INTEGER AS nothing, (i / 100)::DECIMAL(12, 2) AS money, if(i % 5 = 0, NULL, i) AS part"
)
CREATE = f"CREATE TABLE t AS SELECT {COLUMNS} FROM range(5000) r(i)"


def change(path: Path, *statements: str, block_size: int = 262144) -> None:
    """Run statements on a database that is then closed, so that everything is checkpointed."""
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{path}' AS w (BLOCK_SIZE {block_size})")
        connection.execute("USE w")
        for statement in statements:
            connection.execute(statement)
        connection.execute("CHECKPOINT w")


def described(path: Path) -> tuple[WarehouseSchema, dict[str, str]]:
    spec: dict[str, Any] = {
        "raw": str(path),
        "memory_limit": "1GB",
        "threads": 2,
        "temporary": str(path.with_suffix(".spill")),
    }
    found = describe(spec, lambda _done: None)
    return WarehouseSchema.from_dict(found["schema"]), found["fingerprints"]


def fingerprint(path: Path, table: str = "t", schema: str = "main") -> str:
    return described(path)[1][table_key(schema, table)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "w.duckdb"


def test_a_fingerprint_stays_when_other_tables_change_and_after_many_checkpoints(file):
    change(
        file, CREATE, f"CREATE TABLE strings AS SELECT i, {LONG} AS s FROM range(200) r(i)",
        "CREATE TABLE other AS SELECT range AS i FROM range(100000)", "DELETE FROM t WHERE i % 7 = 1",
    )  # fmt: skip
    before = fingerprint(file), fingerprint(file, "strings")
    for turn in range(12):
        change(
            file, f"UPDATE other SET i = i + {turn}", f"CREATE TABLE more{turn} AS SELECT range AS i FROM range(3000)",
            "CHECKPOINT", f"INSERT INTO other SELECT range FROM range({1000 * turn})",
            *([f"DROP TABLE more{turn - 2}"] if turn > 2 else []),
        )  # fmt: skip
        assert (fingerprint(file), fingerprint(file, "strings")) == before, turn
    change(file, "CREATE SCHEMA aside", "CREATE VIEW aside.v AS SELECT * FROM t", "COMMENT ON TABLE t IS 'x'")
    assert (fingerprint(file), fingerprint(file, "strings")) == before


def test_a_fingerprint_is_the_same_for_every_look(file):
    change(file, CREATE)
    assert len({fingerprint(file) for _ in range(3)}) == 1


CHANGES = {
    "one number": "UPDATE t SET n = n + 1 WHERE i = 4711",
    "one text": "UPDATE t SET s = 'name x' WHERE i = 4711",
    "one long text": "UPDATE t SET long = upper(long) WHERE i = 4711",
    "one boolean": "UPDATE t SET b = NOT b WHERE i = 4711",
    "one nested value": "UPDATE t SET nested = {'a': i, 'b': [i + 1, i]} WHERE i = 4711",
    "one decimal": "UPDATE t SET money = money + 0.01 WHERE i = 4711",
    "two numbers swapped": "UPDATE t SET n = if(i = 10, 33, 30) WHERE i IN (10, 11)",
    "two doubles swapped": "UPDATE t SET d = if(i = 10, 11 / 7, 10 / 7) WHERE i IN (10, 11)",
    "two texts swapped": "UPDATE t SET s = if(i = 10, 'name 11', 'name 10') WHERE i IN (10, 11)",
    "two nested values swapped": "UPDATE t SET nested = if(i = 10, {'a': 11, 'b': [11, 12]}, {'a': 10, 'b': [10, 11]}) "
    "WHERE i IN (10, 11)",
    "a NULL moved": "UPDATE t SET part = if(i = 5, 5, NULL) WHERE i IN (5, 6)",
    "a NULL more": "UPDATE t SET part = NULL WHERE i = 4711",
    "the constant": "UPDATE t SET same = 8",
    "the constant nothing": "UPDATE t SET same = NULL",
    "one of a constant column": "UPDATE t SET same = 8 WHERE i = 4711",
    "one that was nothing": "UPDATE t SET nothing = 8 WHERE i = 4711",
    "all that was nothing": "UPDATE t SET nothing = 8",
    "one row deleted": "DELETE FROM t WHERE i = 4711",
    "a row deleted and put back": "DELETE FROM t WHERE i = 10; INSERT INTO t SELECT * FROM aside WHERE i = 10",
    "a row more": "INSERT INTO t SELECT * FROM aside WHERE i = 10",
    "most rows deleted": "DELETE FROM t WHERE i != 4711",
    "all rows deleted": "DELETE FROM t",
    "truncated": "TRUNCATE t",
    "a column more": "ALTER TABLE t ADD COLUMN more INTEGER",
    "a column with a default more": "ALTER TABLE t ADD COLUMN more INTEGER DEFAULT 7",
    "a column less": "ALTER TABLE t DROP COLUMN n",
    "a column renamed": "ALTER TABLE t RENAME n TO number",
    "two columns' names swapped": "ALTER TABLE t RENAME n TO x; ALTER TABLE t RENAME i TO n; "
    "ALTER TABLE t RENAME x TO i",
    "a field renamed": "ALTER TABLE t RENAME nested.a TO c",
    "a type": "ALTER TABLE t ALTER n TYPE INTEGER",
    "a type of the same values": "ALTER TABLE t ALTER same TYPE UINTEGER",
    "a type of the same bytes": "ALTER TABLE t ALTER s TYPE BLOB",
    "other rows' order": "CREATE OR REPLACE TABLE t AS FROM aside ORDER BY i DESC",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "w.duckdb"
    change(path, CREATE, "ALTER TABLE t ADD COLUMN long VARCHAR", f"UPDATE t SET long = {LONG} WHERE i % 50 = 11")
    change(path, "CREATE TABLE aside AS FROM t")
    return path


@pytest.mark.parametrize("statements", CHANGES.values(), ids=CHANGES)
def test_every_change_of_a_table_changes_its_fingerprint(file, prepared, statements):
    before = described(shutil.copy(prepared, file))[1]
    change(file, *statements.split("; "))
    after = described(file)[1]
    assert after[table_key("main", "t")] != before[table_key("main", "t")]
    assert after[table_key("main", "aside")] == before[table_key("main", "aside")]


PAIRS = {
    "constant doubles": ("SELECT 0.1::DOUBLE + 0.2::DOUBLE AS x", "SELECT 0.3::DOUBLE AS x"),
    "constant zeros": ("SELECT 0.0::DOUBLE AS x", "SELECT -0.0::DOUBLE AS x"),
    "constant floats": ("SELECT 16777216::FLOAT AS x", "SELECT 16777218::FLOAT AS x"),
    "constant integers": ("SELECT 1 AS x", "SELECT 2 AS x"),
    "constant times": ("SELECT TIMESTAMP '2020-01-01' AS x", "SELECT TIMESTAMP '2020-01-01 00:00:00.000001' AS x"),
    "constant intervals": ("SELECT INTERVAL 30 DAY AS x", "SELECT INTERVAL 1 MONTH AS x"),
    "constant texts": ("SELECT repeat('a', 20) AS x", "SELECT repeat('a', 21) AS x"),
    "constant texts that begin alike": ("SELECT repeat('a', 20) || 'b' AS x", "SELECT repeat('a', 20) || 'c' AS x"),
    "a NULL that moved": ("SELECT if(i = 0, NULL, 7) AS x", "SELECT if(i = 1, NULL, 7) AS x"),
    "NULL and empty": ("SELECT NULL::VARCHAR AS x", "SELECT '' AS x"),
    "nested NULL": ("SELECT {'a': NULL::INTEGER} AS x", "SELECT NULL::STRUCT(a INTEGER) AS x"),
    "lists cut otherwise": ("SELECT if(i = 0, [1, 2], [3]) AS x", "SELECT if(i = 0, [1], [2, 3]) AS x"),
    "empty list and NULL": ("SELECT []::INTEGER[] AS x", "SELECT NULL::INTEGER[] AS x"),
    "labels": ("SELECT 'a'::ENUM('a', 'b') AS x", "SELECT 'c'::ENUM('c', 'b') AS x"),
    "labels that no row has": ("SELECT 'a'::ENUM('a', 'b') AS x", "SELECT 'a'::ENUM('a', 'c') AS x"),
    "nested labels": ("SELECT {'e': 'a'::ENUM('a', 'b')} AS x", "SELECT {'e': 'c'::ENUM('c', 'b')} AS x"),
    "decimals": ("SELECT 1.0::DECIMAL(4, 1) AS x", "SELECT 1.0::DECIMAL(4, 2) AS x"),
    "variant": ("SELECT 1::VARIANT AS x", "SELECT '1'::VARIANT AS x"),
    "union": (
        "SELECT union_value(a := 1)::UNION(a INT, b INT) AS x",
        "SELECT union_value(b := 1)::UNION(a INT, b INT) AS x",
    ),
    "json": ("SELECT '{\"a\": 1}'::JSON AS x", "SELECT '{\"a\": 1}'::VARCHAR AS x"),
    "bits": ("SELECT '0101'::BIT AS x", "SELECT '00101'::BIT AS x"),
    "times with zones": ("SELECT '10:00:00+01'::TIMETZ AS x", "SELECT '09:00:00+00'::TIMETZ AS x"),
    "arrays": ("SELECT [i, i + 1]::BIGINT[2] AS x", "SELECT [i + 1, i]::BIGINT[2] AS x"),
    "maps": ("SELECT MAP {'a': i} AS x", "SELECT MAP {'b': i} AS x"),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("rows", [2, 3000])
def test_tables_that_differ_a_little_have_different_fingerprints(tmp_path, one, other, rows):
    found = []
    for number, query in enumerate((one, other)):
        path = tmp_path / f"{number}.duckdb"
        change(path, f"CREATE TABLE t AS {query} FROM range({rows}) r(i)")
        found.append(fingerprint(path))
    assert found[0] != found[1]


def test_a_rebuilt_table_with_another_row_deleted_is_another(tmp_path):
    found = set()
    for row in (10, 11, 4000):
        path = tmp_path / f"{row}.duckdb"
        change(path, CREATE)
        change(path, f"DELETE FROM t WHERE i = {row}")
        found.add(fingerprint(path))
    assert len(found) == 3


def test_a_generated_column_that_is_reckoned_otherwise_is_another(tmp_path):
    found = set()
    for number, expression in enumerate(("i + 1", "i + 2", "i - 1")):
        path = tmp_path / f"{number}.duckdb"
        change(path, f"CREATE TABLE t (i BIGINT, g BIGINT AS ({expression}))", "INSERT INTO t FROM range(100)")
        found.add(fingerprint(path))
    assert len(found) == 3


def test_a_named_enum_that_is_made_again_with_other_labels_is_another(tmp_path):
    found = set()
    for number, labels in enumerate(("'a', 'b'", "'b', 'a'", "'a', 'c'")):
        path = tmp_path / f"{number}.duckdb"
        change(
            path, f"CREATE TYPE mood AS ENUM ({labels})", "CREATE TABLE t (m mood)",
            "INSERT INTO t SELECT enum_range(NULL::mood)[1 + i % 2] FROM range(100) r(i)",
        )  # fmt: skip
        found.add(fingerprint(path))
    assert len(found) == 3


def test_a_collation_counts_as_content_because_filters_depend_on_it(tmp_path):
    found = set()
    for number, kind in enumerate(("VARCHAR", "VARCHAR COLLATE NOCASE")):
        path = tmp_path / f"{number}.duckdb"
        change(path, f"CREATE TABLE t (s {kind})", "INSERT INTO t SELECT 'Name ' || i FROM range(100) r(i)")
        found.add(fingerprint(path))
    assert len(found) == 2


MACROS = (
    "hash(x) AS 5, (x, y)", "sum(x)", "bit_xor(x)", "count(x)", "count_star()",
    "lower(x)", '"||"(x, y)', "concat(x, y)",
    "concat_ws(x, y, z)",
)  # fmt: skip
TABLE_MACROS = (
    "duckdb_columns()", "duckdb_tables()", "duckdb_views()", "duckdb_functions()", "duckdb_sequences()",
    "duckdb_types()", "duckdb_indexes()", "duckdb_constraints()", "pragma_storage_info(x)", "pragma_database_size()",
)  # fmt: skip


def test_macros_named_like_functions_of_duckdb_change_nothing(file):
    change(
        file, "CREATE TABLE t AS SELECT [i] AS l, 0.1::DOUBLE AS d FROM range(100) r(i)", "DELETE FROM t WHERE l = [5]"
    )
    schema, prints = described(file)
    change(
        file, *(f"CREATE MACRO {macro} AS 5" for macro in MACROS),
        *(f"CREATE MACRO {macro} AS TABLE SELECT 5" for macro in TABLE_MACROS),
    )  # fmt: skip
    again = described(file)
    assert (again[0].tables, again[1]) == (schema.tables, prints)
    assert len(again[0].others) >= len(TABLE_MACROS)
    change(file, "DELETE FROM t WHERE l = [6]")
    fewer = described(file)[1]
    change(file, "INSERT INTO t VALUES ([6], 0.1)", "UPDATE t SET l = [8] WHERE l = [7]")
    assert len({str(prints), str(fewer), str(described(file)[1])}) == 3


@pytest.mark.parametrize("name", ["w", "system", "temp", "memory", "a.b"])
def test_a_schema_may_be_called_like_a_database(file, name):
    change(
        file, f'CREATE SCHEMA w."{name}"', f'CREATE TABLE w."{name}".t AS SELECT [1] AS i', f'DELETE FROM w."{name}".t'
    )
    schema, prints = described(file)
    assert [(table.schema, table.name, table.rows) for table in schema.tables] == [(name, "t", 0)]
    change(file, f'INSERT INTO w."{name}".t VALUES ([2])')
    assert described(file)[1] != prints


def test_the_catalogue_names_everything(file):
    change(
        file,
        'CREATE SCHEMA "a b"',
        "CREATE TYPE mood AS ENUM ('fine', 'bad')",
        "CREATE SEQUENCE numbers",
        'CREATE TABLE "a b"."t""x" (i INTEGER PRIMARY KEY DEFAULT nextval(\'numbers\'), m mood, g INTEGER AS (i + 1))',
        'INSERT INTO "a b"."t""x" (m) VALUES (\'fine\'), (\'bad\')',
        "CREATE TABLE empty (x DECIMAL(10, 2) CHECK (x > 0) NOT NULL)",
        'CREATE INDEX by_mood ON "a b"."t""x" (m)',
        'CREATE VIEW v AS SELECT i, m FROM "a b"."t""x"',
        "CREATE MACRO plus(a, b) AS a + b",
        "CREATE MACRO rows_of(n) AS TABLE SELECT * FROM range(n)",
        "COMMENT ON TABLE empty IS 'nothing'",
        "COMMENT ON COLUMN empty.x IS 'nothing'",
        "COMMENT ON VIEW v IS 'nothing'",
    )
    schema, prints = described(file)
    generation = schema.tables[0].columns[2].generation
    assert "i + 1" in (generation or "")
    assert schema.tables == (
        Table(
            "a b",
            't"x',
            (
                Column("i", "INTEGER"),
                Column("m", "ENUM('fine', 'bad')"),
                Column("g", "INTEGER", generation),
            ),
            2,
        ),
        Table("main", "empty", (Column("x", "DECIMAL(10,2)"),), 0),
    )
    (view,) = schema.views
    assert (view.schema, view.name, [c.name for c in view.columns]) == ("main", "v", ["i", "m"])
    assert view.sql.startswith("CREATE VIEW")
    assert set(schema.others) >= {
        Other("macro", "main.plus"),
        Other("macro", "main.rows_of"),
        Other("sequence", "main.numbers"),
        Other("type", "main.mood"),
        Other("index", "a b.by_mood"),
        Other("constraint", 'a b.t"x: primary key'),
        Other("constraint", "main.empty: check"),
        Other("constraint", "main.empty: not null"),
        Other("default", 'a b.t"x.i'),
        Other("comment", "main.empty"),
        Other("comment", "main.empty.x"),
        Other("comment", "main.v"),
    }
    assert set(prints) == {table_key("a b", 't"x'), table_key("main", "empty")}
    assert WarehouseSchema.from_dict(schema.to_dict()) == schema


def _content(path: Path) -> str:
    with duckdb.connect(str(path), read_only=True) as connection:
        names = [(row[0], row[1]) for row in connection.execute("DESCRIBE t").fetchall()]
        texts = ", ".join(f'"{name}"::VARCHAR' for name, _kind in names)
        return repr((names, connection.execute(f"SELECT {texts} FROM t ORDER BY rowid").fetchall()))


def _statement(chance: random.Random, turn: int) -> str:
    row, other = chance.randrange(3000), chance.randrange(3000)
    column = chance.choice(["n", "d", "s", "b", "nested", "money", "part", "same", "nothing"])
    values = {
        "n": f"{row} - n",
        "d": "-d",
        "s": f"s || '{turn}'",
        "b": "NOT b",
        "nested": "{'a': 1, 'b': [i]}",
        "money": "1",
        "part": "if(part IS NULL, i, NULL)",
        "same": f"{chance.randrange(9)}",
        "nothing": f"{chance.randrange(9)}",
    }
    return chance.choice(
        [
            f"UPDATE t SET {column} = {values[column]} WHERE i = {row}",
            f"UPDATE t SET {column} = {values[column]} WHERE i BETWEEN {row} AND {row + 2}",
            f"UPDATE t SET {column} = {values[column]}",
            f"UPDATE t SET {column} = NULL WHERE i % 3 = {row % 3}",
            f"UPDATE t SET n = if(i = {row}, {other}, {row}) WHERE i IN ({row}, {other})",
            f"DELETE FROM t WHERE i = {row}",
            f"DELETE FROM t WHERE i % 11 = {row % 11}",
            f"INSERT INTO t SELECT {COLUMNS} FROM range({row}, {row + chance.choice([1, 5, 2000])}) r(i)",
            f"INSERT INTO t SELECT * FROM t WHERE i = {row}",
            f"CREATE OR REPLACE TABLE t AS SELECT * FROM t WHERE i != {row}",
            "CREATE OR REPLACE TABLE t AS SELECT * FROM t",
            f"BEGIN; DELETE FROM t WHERE i < {row}; INSERT INTO t SELECT {COLUMNS} FROM range({row}) r(i); COMMIT",
            f"BEGIN; UPDATE t SET n = 0; ROLLBACK; CREATE OR REPLACE TABLE aside AS FROM range({row})",
            "CHECKPOINT",
        ]
    )


@pytest.mark.parametrize("seed", range(2))
def test_whatever_statements_come_a_changed_content_has_a_new_fingerprint(file, seed):
    chance = random.Random(seed)
    size = chance.choice([16384, 262144])
    change(file, CREATE.replace("5000", "3000"), block_size=size)
    seen: dict[str, str] = {fingerprint(file): _content(file)}
    same = 0
    for turn in range(30):
        change(file, *(_statement(chance, turn) for _ in range(chance.choice([1, 1, 1, 3]))), block_size=size)
        found, content = fingerprint(file), _content(file)
        same += found in seen
        assert seen.setdefault(found, content) == content, turn
    assert same, "some did not change it"
