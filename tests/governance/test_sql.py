"""Masks and comparisons on every type that DuckDB has, and what they give by the letter."""

from __future__ import annotations

import hashlib
from typing import Any

import duckdb
import pytest

from marimohub.governance.loading import parse
from marimohub.governance.resolve import resolve
from marimohub.governance.sql import misfit
from marimohub.governance.subject import Subject
from marimohub.snapshots.schema import Column, Table, WarehouseSchema

pytestmark = pytest.mark.unit

KEY = "k" * 64
CONNECTION = duckdb.connect(":memory:", config={"threads": 1})
POLICY = """
version: 1
levels: [a]
attributes: {}
tables: {t: {columns: {"*": {}}}}
grants: [{name: g, to: {everyone: true}, tables: [t]}]
"""
VALUES = {
    "TINYINT": "-5", "SMALLINT": "-5", "INTEGER": "-5", "BIGINT": "-5", "HUGEINT": "-5", "UTINYINT": "17",
    "USMALLINT": "17", "UINTEGER": "17", "UBIGINT": "17", "UHUGEINT": "17", "FLOAT": "0.1", "DOUBLE": "0.1",
    "DECIMAL(18,3)": "1.250", "DECIMAL(38,10)": "1.25", "BOOLEAN": "true", "VARCHAR": "'ann@example.org'",
    "ENUM('a', 'b')": "'a'", "DATE": "'2020-05-06'", "TIME": "'10:11:12'", "TIMESTAMP": "'2020-05-06 07:08:09.5'",
    "TIMESTAMP_S": "'2020-05-06 07:08:09'", "TIMESTAMP_MS": "'2020-05-06 07:08:09.5'",
    "TIMESTAMP_NS": "'2020-05-06 07:08:09.5'", "TIMESTAMP WITH TIME ZONE": "'2020-05-06 07:08:09.5+00'",
    "INTERVAL": "INTERVAL 3 DAYS", "UUID": "'00000000-0000-0000-0000-000000000001'", "BLOB": "'x\\x00'", "BIT": "'101'",
    "JSON": "'{}'", "INTEGER[]": "[1, NULL]", "VARCHAR[2]": "['a', 'b']", "STRUCT(a INTEGER)": "{'a': 1}",
    "ENUM('a', 'b')[]": "['a']", "MAP(VARCHAR, INTEGER)": "MAP {'a': 1}", "BIGNUM": "5",
}  # fmt: skip


def run(type_text: str, value: str, rules: str) -> list[Any]:
    """Value and type of the column `c` that holds the value and a NULL, as the policy gives them."""
    connection = CONNECTION
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"CREATE OR REPLACE TABLE t (c {type_text})")
    connection.execute(f"INSERT INTO t VALUES (CAST({value} AS {type_text})), (NULL)")
    shown = connection.execute("SELECT data_type FROM duckdb_columns() WHERE table_name = 't'").fetchall()[0][0]
    schema = WarehouseSchema((Table("main", "t", (Column("c", shown),), 2),))
    plan = resolve(parse(POLICY + rules), schema, Subject("ann")).tables[0].plan()
    inner = f"SELECT {plan.columns[0].sql} AS c FROM t WHERE {plan.where or 'true'}"
    query = f"SELECT CAST(c AS VARCHAR), typeof(c) FROM ({inner})"
    key = {"masking_key": KEY} if "$masking_key" in query else {}
    return connection.execute(query, {**plan.parameters, **key}).fetchall()


def mask(text: str) -> str:
    return f"masks: [{{name: m, columns: [t.c], mask: {text}}}]"


def where(text: str) -> str:
    return f"filters: [{{name: f, tables: [t], where: {text}}}]"


@pytest.mark.parametrize("type_text", VALUES)
def test_the_null_mask_keeps_the_type_but_no_labels(type_text: str) -> None:
    expected = "VARCHAR" if "ENUM" in type_text else type_text
    assert run(type_text, VALUES[type_text], mask("null")) == [(None, expected)] * 2


@pytest.mark.parametrize("type_text", VALUES)
def test_any_type_can_be_hashed(type_text: str) -> None:
    plain = run(type_text, VALUES[type_text], "")
    expected = hashlib.sha256((KEY + plain[0][0]).encode()).hexdigest()[:32]
    assert run(type_text, VALUES[type_text], mask("hash")) == [(expected, "VARCHAR"), (None, "VARCHAR")]


@pytest.mark.parametrize(
    ("type_text", "text", "expected"),
    [
        ("INTEGER", "{constant: 7}", ("7", "INTEGER")),
        ("UHUGEINT", "{constant: 7}", ("7", "UHUGEINT")),
        ("FLOAT", "{constant: 0.1}", ("0.1", "FLOAT")),
        ("DECIMAL(18,3)", "{constant: 0.1}", ("0.100", "DECIMAL(18,3)")),
        ("BOOLEAN", "{constant: false}", ("false", "BOOLEAN")),
        ("VARCHAR", "{constant: 1.5}", ("1.5", "VARCHAR")),
        ("VARCHAR", "{constant: true}", ("true", "VARCHAR")),
        ("VARCHAR", '{constant: "\'"}', ("'", "VARCHAR")),
        ("ENUM('a', 'b')", "{constant: hidden}", ("hidden", "VARCHAR")),
        ("DATE", "{constant: 1900-01-01}", ("1900-01-01", "DATE")),
        ("TIMESTAMP_S", "{constant: 1900-01-01}", ("1900-01-01 00:00:00", "TIMESTAMP_S")),
        ("TIMESTAMP WITH TIME ZONE", "{constant: '1900-01-01 01:00+01:00'}",
         ("1900-01-01 00:00:00+00", "TIMESTAMP WITH TIME ZONE")),
    ],
)  # fmt: skip
def test_a_constant_stands_for_null_too(type_text: str, text: str, expected: tuple[str, str]) -> None:
    assert run(type_text, VALUES[type_text], mask(text)) == [expected] * 2


@pytest.mark.parametrize(
    ("type_text", "text", "expected"),
    [
        ("TINYINT", "{bucket: {size: 10}}", ("-10", "BIGINT")),
        ("UBIGINT", "{bucket: {size: 10}}", ("10", "HUGEINT")),
        ("UHUGEINT", "{bucket: {size: 10}}", ("10", "HUGEINT")),
        ("INTEGER", "{bucket: {size: 2.5}}", ("-5.0", "DOUBLE")),
        ("DECIMAL(18,3)", "{bucket: {size: 0.5}}", ("1.0", "DOUBLE")),
        ("FLOAT", "{bucket: {size: 1}}", ("0.0", "DOUBLE")),
        ("DATE", "year", ("2020-01-01", "DATE")),
        ("DATE", "{bucket: {unit: week}}", ("2020-05-04", "DATE")),
        ("TIMESTAMP", "{bucket: {unit: hour}}", ("2020-05-06 07:00:00", "TIMESTAMP")),
        ("TIMESTAMP_S", "{bucket: {unit: quarter}}", ("2020-04-01 00:00:00", "TIMESTAMP_S")),
        ("TIMESTAMP_MS", "year", ("2020-01-01 00:00:00", "TIMESTAMP_MS")),
        ("TIMESTAMP_NS", "{bucket: {unit: day}}", ("2020-05-06 00:00:00", "TIMESTAMP_NS")),
        ("TIMESTAMP WITH TIME ZONE", "year", ("2020-01-01 00:00:00+00", "TIMESTAMP WITH TIME ZONE")),
        ("VARCHAR", "email_domain", ("***@example.org", "VARCHAR")),
        ("ENUM('a', 'b')", "email_domain", ("***", "VARCHAR")),
        ("VARCHAR", "{partial: {first: 1, last: 2}}", ("a***rg", "VARCHAR")),
        ("ENUM('a', 'b')", "{partial: {first: 1}}", ("***", "VARCHAR")),
    ],
)
def test_other_masks_leave_null_as_it_is(type_text: str, text: str, expected: tuple[str, str]) -> None:
    assert run(type_text, VALUES[type_text], mask(text)) == [expected, (None, expected[1])]


@pytest.mark.parametrize("type_text", VALUES)
def test_a_mask_that_fits_runs(type_text: str) -> None:
    for text in ("hash", "null", "year", "email_domain", "{bucket: {size: 3}}", "{bucket: {unit: day}}",
                 "{partial: {first: 1}}", "{constant: 5}", "{constant: x}", "{constant: 2020-01-01}"):  # fmt: skip
        chosen = parse(POLICY + mask(text)).masks[0].mask
        if misfit(chosen, type_text) is None:
            run(type_text, VALUES[type_text], mask(text))


@pytest.mark.parametrize(
    ("type_text", "text", "kept"),
    [
        ("FLOAT", "{column: c, equals: 0.1}", True),
        ("FLOAT", "{column: c, less_than: 1e300}", True),
        ("DOUBLE", "{column: c, equals: 0.1}", True),
        ("DOUBLE", "{column: c, between: [0, 1]}", True),
        ("DECIMAL(18,3)", "{column: c, equals: 1.25}", True),
        ("DECIMAL(18,3)", "{column: c, equals: 1.2500001}", False),
        ("DECIMAL(38,10)", "{column: c, in: [1.25, 170141183460469231731687303715884105727]}", True),
        ("UBIGINT", "{column: c, greater_than: -170141183460469231731687303715884105728}", True),
        ("HUGEINT", "{column: c, less_than: 170141183460469231731687303715884105727}", True),
        ("TINYINT", "{column: c, equals: 5000}", False),
        ("TIMESTAMP_NS", "{column: c, equals: '2020-05-06T07:08:09.5'}", True),
        ("TIMESTAMP_MS", "{column: c, at_least: 0001-01-01}", True),
        ("TIMESTAMP_S", "{column: c, equals: '2020-05-06 07:08:09'}", True),
        ("TIMESTAMP WITH TIME ZONE", "{column: c, equals: '2020-05-06 09:08:09.5+02:00'}", True),
        ("TIMESTAMP WITH TIME ZONE", "{column: c, at_least: 2020-05-07}", False),
        ("ENUM('a', 'b')", "{column: c, equals: neither}", False),
        ("ENUM('a', 'b')", "{column: c, less_than: aa}", True),
        ("BOOLEAN", "{column: c, equals: true}", True),
        ("BLOB", "{column: c, is_null: false}", True),
        ("VARCHAR", "{column: c, starts_with: 'ann%'}", False),
    ],
)
def test_a_comparison_is_exact(type_text: str, text: str, kept: bool) -> None:
    assert len(run(type_text, VALUES[type_text], where(text))) == kept


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a@b@example.org", "***@example.org"), ("", "***"), ("none", "***"), ("a@", "***"), ("@x", "***@x"),
     ("a@b c", "***"), ("a@ünï.de", "***"), ("a@b\n", "***"), ("a@" + "x" * 254, "***")],
)  # fmt: skip
def test_only_what_looks_like_a_domain_is_kept(value: str, expected: str) -> None:
    literal = "'" + value + "'"
    assert run("VARCHAR", literal, mask("email_domain"))[0][0] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("abcdef", "a***ef"),
        ("abcde", "***"),
        ("", "***"),
        ("日本語テキスト", "日***スト"),
        ("😀😀😀😀😀😀", "😀***😀😀"),
    ],
)
def test_short_texts_are_not_shown_in_part(value: str, expected: str) -> None:
    assert run("VARCHAR", f"'{value}'", mask("{partial: {first: 1, last: 2}}"))[0][0] == expected


@pytest.mark.parametrize(
    ("declared", "held", "type_text", "sql", "kept"),
    [
        ("{type: text}", "it's", "VARCHAR", "c <> $a", True),
        ("{type: text, list: true}", ["x", "ann@example.org"], "VARCHAR", "c IN ($a)", True),
        ("{type: text, list: true}", ["x", "'"], "VARCHAR", "c IN ($a, 'ann@example.org')", True),
        ("{type: text, list: true}", ["x", "'"], "VARCHAR", "c NOT IN $a", True),
        ("{type: text, list: true}", [], "VARCHAR", "c NOT IN $a", False),
        ("{type: number}", 2**70, "DECIMAL(18,3)", "c < $a", True),
        ("{type: number}", 0.1, "DOUBLE", "c = $a", True),
        ("{type: number, list: true}", [1, -5, 0.5], "INTEGER", "c IN ($a)", True),
        ("{type: date}", "2020-05-06", "DATE", "c = $a", True),
        ("{type: date}", "2020-05-06", "TIMESTAMP", "c > $a", True),
        ("{type: boolean}", True, "BOOLEAN", "c = $a AND $a", True),
        ("{type: boolean}", 1, "BOOLEAN", "true OR c = $a", False),
    ],
)
def test_attributes_in_sql_are_values(declared: str, held: Any, type_text: str, sql: str, kept: bool) -> None:
    policy = POLICY.replace("attributes: {}", f"attributes: {{a: {declared}}}") + where(f'{{sql: "{sql}"}}')
    schema = WarehouseSchema((Table("main", "t", (Column("c", type_text),), 1),))
    plan = resolve(parse(policy), schema, Subject("ann", attributes={"a": held})).tables[0].plan()
    assert "it's" not in (plan.where or "")
    CONNECTION.execute(f"CREATE OR REPLACE TABLE t AS SELECT CAST({VALUES[type_text]} AS {type_text}) AS c")
    assert len(CONNECTION.execute(f"SELECT c FROM t WHERE {plan.where}", plan.parameters).fetchall()) == kept
