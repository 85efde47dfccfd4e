"""For any warehouse, policy and person: the queries give exactly what the rules say, worked out a second time."""

from __future__ import annotations

import math
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings

from marimohub.governance.loading import parse
from marimohub.governance.resolve import Access, resolve
from marimohub.snapshots.schema import Table
from tests.governance.reference import KEY, Person
from tests.governance.strategies import Case, cases

pytestmark = pytest.mark.unit


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def load(connection: duckdb.DuckDBPyConnection, table: Table, rows: list[dict[str, Any]]) -> str:
    """Make the table, with its generated columns as ordinary ones; gives its quoted name."""
    name = f"{quoted(table.schema)}.{quoted(table.name)}"
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(table.schema)}")
    columns = ", ".join(f"{quoted(column.name)} {column.type}" for column in table.columns)
    connection.execute(f"CREATE OR REPLACE TABLE {name} ({columns})")
    marks = ", ".join("?" for _ in table.columns)
    for row in rows:
        connection.execute(f"INSERT INTO {name} VALUES ({marks})", [row[column.name] for column in table.columns])
    return name


def run(connection: duckdb.DuckDBPyConnection, access: Access, table: Table, name: str) -> Any:
    """What the plan of a table gives: names and rows; None if there is none."""
    found = [each for each in access.tables if (each.schema, each.name) == (table.schema, table.name)]
    if not found:
        return None
    plan = found[0].plan()
    columns = ", ".join(f"{column.sql} AS {quoted(column.name)}" for column in plan.columns)
    query = f"SELECT {columns} FROM {name}" + (f" WHERE {plan.where}" if plan.where else "")
    key = {"masking_key": KEY} if "$masking_key" in query else {}
    rows = connection.execute(query, {**plan.parameters, **key}).fetchall()
    return [column.name for column in plan.columns], [list(row) for row in rows]


def exact(value: Any) -> Any:
    """A value that is equal only to the same value of the same type."""
    if isinstance(value, list | tuple):
        return [exact(each) for each in value]
    if isinstance(value, float) and math.isnan(value):
        return (float, "nan")
    return (type(value), value)


CONNECTION = duckdb.connect(":memory:", config={"threads": 1})


def compare(case: Case) -> None:
    """Both ways to the result, and their difference."""
    access = resolve(parse(case.text), case.schema, case.subject)
    person = Person(
        case.text, case.subject.user, case.subject.role, set(case.subject.groups), dict(case.subject.attributes)
    )
    for table in case.schema.tables:
        key = (table.schema, table.name)
        columns = [(column.name, column.type, case.parts.get((*key, column.name), [])) for column in table.columns]
        expected = person.sees(key, columns, case.rows[key])
        name = load(CONNECTION, table, case.rows[key])
        assert exact(run(CONNECTION, access, table, name)) == exact(expected)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases())
def test_a_person_sees_exactly_what_the_rules_say(case: Case) -> None:
    compare(case)
