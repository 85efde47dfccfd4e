"""Values that no mask touches come through Parquet as they were, in the type that is promised for theirs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import pytest

from marimohub.snapshots.build_process import build
from marimohub.snapshots.mask_process import mask_tables
from marimohub.snapshots.plan import ColumnPlan, TablePlan
from marimohub.snapshots.types import quoted

pytestmark = pytest.mark.unit

LIMITS = {"memory_limit": "500MB", "threads": 2}
NUMBERS = {
    "TINYINT": ["-128", "127", "0"],
    "SMALLINT": ["-32768", "32767"],
    "INTEGER": ["-2147483648", "2147483647"],
    "BIGINT": ["-9223372036854775808", "9223372036854775807"],
    "HUGEINT": ["-170141183460469231731687303715884105728", "170141183460469231731687303715884105727", "0"],
    "UTINYINT": ["0", "255"],
    "USMALLINT": ["0", "65535"],
    "UINTEGER": ["0", "4294967295"],
    "UBIGINT": ["0", "18446744073709551615"],
    "UHUGEINT": ["0", "340282366920938463463374607431768211455"],
    "BIGNUM": ["0", "-1", "9" * 100, "-" + "8" * 700],
    "FLOAT": ["nan", "inf", "-inf", "-0.0", "0.0", "1e-45", "3.4028235e38", "0.1"],
    "DOUBLE": ["nan", "inf", "-inf", "-0.0", "0.0", "5e-324", "1.7976931348623157e308", "0.1", "0.30000000000000004"],
    "DECIMAL(4,1)": ["-999.9", "999.9"],
    "DECIMAL(9,4)": ["-99999.9999", "0.0001"],
    "DECIMAL(18,0)": ["999999999999999999"],
    "DECIMAL(38,10)": ["-9999999999999999999999999999.9999999999", "0.0000000001"],
}
TIMES = {
    "DATE": ["infinity", "-infinity", "5877642-06-25 (BC)", "5881580-07-10", "1970-01-01", "0001-01-01"],
    "TIME": ["00:00:00", "23:59:59.999999", "24:00:00"],
    "TIME WITH TIME ZONE": [
        "00:00:00+15:59",
        "23:59:59.999999-15:59",
        "24:00:00+00",
        "10:00:00+01",
        "10:00:00-01:02:03",
    ],
    "TIME_NS": ["10:00:00.123456789", "00:00:00"],
    "TIMESTAMP": [
        "infinity",
        "-infinity",
        "290309-12-22 (BC) 00:00:00",
        "294247-01-10 04:00:54.775806",
        "2020-01-01 00:00",
    ],
    "TIMESTAMP WITH TIME ZONE": [
        "infinity",
        "-infinity",
        "290309-12-22 (BC) 00:00:00+00",
        "2020-01-01 10:00:00.000001+01",
    ],
    "TIMESTAMP_S": ["infinity", "-infinity", "2020-01-01 10:00:01"],
    "TIMESTAMP_MS": ["infinity", "-infinity", "2020-01-01 10:00:01.001"],
    "TIMESTAMP_NS": [
        "infinity",
        "-infinity",
        "2020-01-01 10:00:01.123456789",
        "1677-09-22 00:00:00",
        "2262-04-11 23:47:16.854775806",
    ],
    "INTERVAL": [
        "-1 months 3 days -00:00:01",
        "178956970 years",
        "9223372036854775807 microseconds",
        "1 month",
        "30 days",
        "720 hours",
        "1 microsecond",
        "-1 microsecond",
        "83 years 3 months 999 days 23:59:59.999999",
    ],
}
OTHERS = {
    "BOOLEAN": ["true", "false"],
    "UUID": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "BIT": ["0", "1", "00101", "1" * 200],
    "BLOB": ["", r"\x00", r"\xFF\x00\x01", "abc"],
    "VARCHAR": [
        "",
        " ",
        "\0",
        "a\0b",
        "\0\0",
        "äöü€😀",
        "e\u0301",
        "'",
        '"',
        "\\",
        "\\x00",
        "NULL",
        "\r\n\t",
        "x" * 300_000,
    ],
    "JSON": ['{"a": [1, null]}', "null", '"x"', "1e400", '{"a":1, "a":2}', " [ ] "],
}
# SQL of values, and the type that they have afterwards if it is another one.
NESTED: dict[str, tuple[list[str], str]] = {
    "INTEGER[]": (["[]", "[NULL]", "[1, NULL, 2]"], ""),
    "VARCHAR[][]": (["[[]]", "[NULL, ['', NULL, 'a, b', '[', 'it''s']]", "[['NULL']]"], ""),
    "INTEGER[3]": (["[1, NULL, 3]"], ""),
    "HUGEINT[2][]": (["[[170141183460469231731687303715884105727, NULL]]", "[]"], ""),
    "INTERVAL[]": (["[INTERVAL 1 MICROSECOND, NULL, INTERVAL 30 DAY]"], ""),
    "INTEGER[2][2]": (["[[1, 2], [3, NULL]]", "[NULL, [1, 2]]"], ""),
    "TIME WITH TIME ZONE[]": (["['10:00:00+01', NULL]"], ""),
    "STRUCT(a INTEGER, b VARCHAR)": (["{'a': NULL, 'b': ''}", "{'a': 1, 'b': '}, ''b'': {'}"], ""),
    'STRUCT("a ""b" HUGEINT, " " BIT[], "A, c" TIME_NS)': (["ROW(1, ['01'::BIT, NULL], '10:00:00.123456789')"], ""),
    "STRUCT(i INTERVAL, s STRUCT(u UHUGEINT, t TIMESTAMP_NS))": (
        [
            "{'i': INTERVAL 1 MICROSECOND, 's': {'u': 340282366920938463463374607431768211455, 't': NULL}}",
            "{'i': NULL, 's': NULL}",
        ],
        "",
    ),
    "MAP(VARCHAR, INTEGER)": (["MAP {}", "MAP {'': NULL, 'a=b': 1, '{': 2}"], ""),
    "MAP(HUGEINT, INTERVAL)": (["MAP {170141183460469231731687303715884105727: INTERVAL 1 MICROSECOND}"], ""),
    "MAP(STRUCT(a BIGNUM), DOUBLE[])": (
        ["MAP {{'a': 12345678901234567890123456789012345678901234567890}: ['nan'::DOUBLE, -0.0]}"],
        "",
    ),
    "DECIMAL(38,2)[]": (["[999999999999999999999999999999999999.99]"], ""),
    'STRUCT("a.b" INTEGER, list INTEGER[], element STRUCT(element INTEGER)[])': (["ROW(1, [1], [ROW(1)])"], ""),
    'MAP(INTEGER[2], STRUCT("key" INTEGER, "value" VARCHAR[2]))': (["MAP {[1, 2]: ROW(3, ['a', NULL])}"], ""),
    "DATE[]": (["['infinity', '-infinity', NULL]"], ""),
    "TIMESTAMP_S[]": (["['infinity', '2020-01-01 00:00:01', NULL]"], ""),
    "TIMESTAMP WITH TIME ZONE[]": (["['-infinity', '2020-01-01 00:00:01+01', NULL]"], ""),
    "JSON[]": (["['{\"a\": 1}', NULL]"], ""),
    "BLOB[]": ([r"['\x00\xFF'::BLOB, ''::BLOB]"], ""),
    "STRUCT(d DOUBLE, f FLOAT)": (["{'d': '-0.0', 'f': 'nan'}", "{'d': 0.1, 'f': 0.1}"], ""),
    "ENUM('spare', 'a', 'b')": (["'a'", "'b'"], "VARCHAR"),
    "STRUCT(e ENUM('spare', 'a'), n INTEGER)": (
        ["{'e': 'a', 'n': 1}", "{'e': NULL, 'n': 1}"],
        "STRUCT(e VARCHAR, n INTEGER)",
    ),
    "ENUM('spare', 'a')[]": (["['a', NULL]", "[]"], "VARCHAR[]"),
    "ENUM('spare', 'a')[2]": (["['a', NULL]"], "VARCHAR[2]"),
    "MAP(ENUM('spare', 'a'), ENUM('spare', 'b'))": (["MAP {'a': 'b'}"], "MAP(VARCHAR, VARCHAR)"),
    "UNION(number INTEGER, words VARCHAR)": (["union_value(number := 1)", "union_value(words := 'one')"], "VARCHAR"),
    "STRUCT(u UNION(number INTEGER, words VARCHAR))": (["{'u': 'x'}"], "STRUCT(u VARCHAR)"),
    "UNION(e ENUM('spare', 'a'), n INTEGER)": (["union_value(n := 1)"], "VARCHAR"),
    "VARIANT": (["1::VARIANT", "{'a': [1, NULL]}::VARIANT", "'text'::VARIANT"], "VARCHAR"),
    "VARIANT[]": (["[1::VARIANT, 'x'::VARIANT]"], "VARCHAR[]"),
    "GEOMETRY": (["'POINT(1 2)'", "'POLYGON((0 0, 1 0, 1 1, 0 0))'"], "VARCHAR"),
    "GEOMETRY('OGC:CRS84')": (["'POINT(1 2)'"], "VARCHAR"),
    "TIMESTAMPTZ_NS": (["'2020-01-01 10:00:00.123456789+01'", "'infinity'"], "VARCHAR"),
}
# Types that a column only gets by what it is made of.
MADE_OF = {
    "NULL": ("NULL", "VARCHAR"),
    '"NULL"[]': ("[NULL]", "VARCHAR[]"),
    'STRUCT(a "NULL")': ("{'a': NULL}", "STRUCT(a VARCHAR)"),
    "TUPLE(INTEGER, VARCHAR)": ("row(1, 'x')", "VARCHAR"),
}
NO_COLUMNS = {"TYPE"}


def text(value: str) -> str:
    return "'" + value.replace("'", "''").replace("\0", "' || chr(0) || '") + "'"


CASES = {kind: ([f"({text(value)})" for value in values], "") for kind, values in (NUMBERS | TIMES | OTHERS).items()}
CASES |= NESTED


def through(folder: Path, create: list[str]) -> Path:
    """What mask and build make of the table `t` of a warehouse, nothing masked."""
    raw, part, out = folder / "raw.duckdb", folder / "part.parquet", folder / "out.duckdb"
    with duckdb.connect(str(raw)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for statement in create:
            connection.execute(statement)
        names = [row[0] for row in connection.execute("DESCRIBE t").fetchall()]
    plan = TablePlan("main", "t", tuple(ColumnPlan(name, quoted(name)) for name in names))
    table = {"plan": asdict(plan), "file": str(part)}
    limits: dict[str, Any] = {**LIMITS, "temporary": str(folder / "spill")}
    mask_tables({"raw": str(raw), "tables": [table], "masking_key": "", **limits}, lambda _done: None)
    tables = [{"schema": "main", "name": "t", "file": str(part)}]
    build({"destination": str(out), "tables": tables, "views": [], **limits}, lambda _done: None)
    return out


def looked_at(path: Path) -> tuple[str, list[tuple[Any, ...]]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        kind = connection.execute("SELECT column_type FROM (DESCRIBE t) WHERE column_name = 'x'").fetchone()
        assert kind is not None
        return kind[0], connection.execute("SELECT n, x IS NULL, x::VARCHAR FROM t ORDER BY n").fetchall()


@pytest.mark.parametrize("kind", CASES)
def test_values_come_through_as_they_were(tmp_path, kind):
    values, becomes = CASES[kind]
    inserts = [f"INSERT INTO t VALUES ({n}, {value})" for n, value in enumerate([*values, "NULL", *values])]
    out = through(tmp_path, [f"CREATE TABLE t (n INTEGER, x {kind})", *inserts])
    before, after = looked_at(tmp_path / "raw.duckdb"), looked_at(out)
    assert after[0] == (becomes or before[0])
    assert after[1] == before[1]


@pytest.mark.parametrize(("value", "becomes"), MADE_OF.values(), ids=MADE_OF)
def test_types_without_a_name_come_through_as_text(tmp_path, value, becomes):
    out = through(tmp_path, [f"CREATE TABLE t AS SELECT 1 AS n, {value} AS x"])
    before, after = looked_at(tmp_path / "raw.duckdb"), looked_at(out)
    assert after == (becomes, before[1])


def test_rows_keep_their_order(tmp_path):
    query = "SELECT hash(i) AS n, i::VARCHAR AS x FROM range(300000) r(i)"
    out = through(tmp_path, [f"CREATE TABLE t AS {query}"])
    with duckdb.connect(str(out), read_only=True) as connection:
        assert connection.execute("FROM t").fetchall() == connection.execute(query).fetchall()


@pytest.mark.parametrize("kind", ["INTEGER", "VARCHAR", "STRUCT(a INTEGER)", "INTEGER[2]", "ENUM('spare')", "VARIANT"])
@pytest.mark.parametrize("rows", [[], ["NULL"]], ids=["no rows", "only NULL"])
def test_a_table_without_a_value_comes_through(tmp_path, kind, rows):
    out = through(
        tmp_path, [f"CREATE TABLE t (n INTEGER, x {kind})", *(f"INSERT INTO t VALUES (1, {r})" for r in rows)]
    )
    assert looked_at(out)[1] == [(1, True, None)] * len(rows)


def test_every_type_of_duckdb_is_among_these():
    with duckdb.connect() as connection:
        known = {row[0] for row in connection.execute("SELECT DISTINCT logical_type FROM duckdb_types()").fetchall()}
    nested = " ".join([*CASES, *MADE_OF])
    missing = {kind for kind in known if kind not in nested} - NO_COLUMNS - {"LIST", "ARRAY", "DECIMAL"}
    assert missing == set()


@pytest.mark.parametrize(
    "kind",
    ["{}", "STRUCT(e {})", "{}[]", "{}[2]", "MAP({}, INTEGER)", "STRUCT(s STRUCT(e {})[])", "UNION(e {}, i INTEGER)"],
)
def test_labels_that_no_row_has_are_nowhere_in_the_file(tmp_path, kind):
    out = through(
        tmp_path,
        [
            "CREATE TYPE mood AS ENUM ('SpareLabel4711', 'fine')",
            f"CREATE TABLE t (n INTEGER, x {kind.format('mood')})",
            "INSERT INTO t VALUES (1, NULL)",
        ],
    )
    assert b"SpareLabel4711" in (tmp_path / "raw.duckdb").read_bytes()
    assert b"SpareLab" not in out.read_bytes()
    assert b"SpareLab" not in (tmp_path / "part.parquet").read_bytes()


def test_names_of_columns_need_no_care(tmp_path):
    names = ['a "b', "c0", "C1", "SELECT", "ä", "a.b", "$x", " ", "rowid "]
    columns = ", ".join(f"{quoted(name)} INTEGER" for name in names)
    out = through(
        tmp_path, [f"CREATE TABLE t ({columns})", f"INSERT INTO t VALUES ({', '.join(map(str, range(len(names))))})"]
    )
    with duckdb.connect(str(out), read_only=True) as connection:
        found = connection.execute("FROM t")
        assert [column[0] for column in found.description or ()] == names
        assert found.fetchall() == [tuple(range(len(names)))]
