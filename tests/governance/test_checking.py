"""A policy that does not fit the warehouse is told so before anybody sees anything."""

from __future__ import annotations

import pytest

from marimohub.governance.checking import check
from marimohub.governance.errors import PolicyInvalid, Problem
from marimohub.governance.loading import parse
from marimohub.governance.resolve import resolve
from tests.governance.policies import ANN, POLICY, WAREHOUSE, filtered, masked

pytestmark = pytest.mark.unit


def found(text: str, severity: str) -> list[Problem]:
    return [problem for problem in check(parse(text), WAREHOUSE) if problem.severity == severity]


def column(name: str) -> str:
    return f"columns: [sales.customers.{name}]"


def test_the_policy_of_these_tests_fits() -> None:
    assert check(parse(POLICY), WAREHOUSE) == []


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        (POLICY.replace("sales.customers:", "sales.clients:"), "tables.sales.clients", "there is no table"),
        (POLICY.replace("sales.customers:", "sales.active_customers:"), "tables.sales.active_customers", "is a view"),
        (POLICY.replace("email: {", "mail: {"), "tables.sales.customers.columns.mail", "no column mail"),
        (POLICY.replace("views: [sales.*]", "views: [sales.gone]"), "views[0]", "there is no view"),
        (POLICY.replace("views: [sales.*]", "views: [sales.customers]"), "views[0]", "is a table"),
        (POLICY.replace('tables: ["*"]', "tables: [sales.gone]"), "grants[0].tables[0]", "there is no table or view"),
        (
            POLICY.replace('tables: ["*"]', "tables: [sales.customers], columns: [ids]"),
            "grants[0].columns",
            "no column ids",
        ),
        (masked("hash", "columns: [sales.gone.id]"), "masks[0].columns", "there is no table"),
        (masked("hash", column("gone")), "masks[0].columns", "no column sales.customers.gone"),
        (masked("{partial: {first: 1}}", column("id")), "masks[0].mask", "partial is for text"),
        (masked("email_domain", column("born")), "masks[0].mask", "email_domain is for text"),
        (masked("year", column("email")), "masks[0].mask", "year is for dates"),
        (masked("{bucket: {unit: hour}}", column("born")), "masks[0].mask", "a DATE has no hours"),
        (masked("{bucket: {unit: day}}", column("id")), "masks[0].mask", "dates and timestamps"),
        (masked("{bucket: {size: 5}}", column("born")), "masks[0].mask", "for numbers"),
        (masked("{bucket: {size: 5}}", column("active")), "masks[0].mask", "for numbers"),
        (masked("{constant: x}", column("id")), "masks[0].mask", "not a number"),
        (masked("{constant: 1.5}", column("id")), "masks[0].mask", "does not fit INTEGER"),
        (masked("{constant: 2147483648}", column("id")), "masks[0].mask", "does not fit INTEGER"),
        (masked("{constant: 0.001}", column("spent")), "masks[0].mask", "does not fit DECIMAL"),
        (masked("{constant: 10000000}", column("spent")), "masks[0].mask", "does not fit DECIMAL"),
        (masked("{constant: 1}", column("active")), "masks[0].mask", "true or false"),
        (masked("{constant: 2020-02-30}", column("born")), "masks[0].mask", "not a date"),
        (masked("{constant: x}", column("extra")), "masks[0].mask", "use null, hash or hide"),
        (masked("year", "levels: [internal]"), "masks[0].mask", "sales.customers.id: year is for dates"),
        (filtered("{column: gone, equals: 1}"), "filters[0].where", "no column gone"),
        (filtered("{column: id, equals: 1}", "sales.gone"), "filters[0].tables[0]", "there is no table"),
        (filtered("{column: id, equals: 1}", "sales.active_customers"), "filters[0].tables[0]", "is a view"),
        (filtered("{column: country, equals: DE}", "'*'"), "filters[0].where", "support.tickets: there is no column"),
        (filtered("{column: country, equals: 5}"), "filters[0].where", "put it in quotes"),
        (filtered("{column: country, equals: true}"), "filters[0].where", "put it in quotes"),
        (filtered("{column: id, equals: '5'}"), "filters[0].where", "not a number"),
        (filtered("{column: id, equals: true}"), "filters[0].where", "not a number"),
        (filtered("{column: id, in: [1, x]}"), "filters[0].where", "not a number"),
        (filtered("{column: id, starts_with: '1'}"), "filters[0].where", "starts_with is for text"),
        (filtered("{column: active, equals: 1}"), "filters[0].where", "true or false"),
        (filtered("{column: active, equals: yes}"), "filters[0].where", "true or false"),
        (filtered("{column: active, less_than: true}"), "filters[0].where", "use equals"),
        (filtered("{column: born, equals: 2020}"), "filters[0].where", "not a date"),
        (filtered("{column: born, equals: 1.1.2020}"), "filters[0].where", "not a date"),
        (filtered("{column: born, equals: '2020-01-01 10:00'}"), "filters[0].where", "not a date"),
        (filtered("{column: opened, equals: '2020-01-01 10:00Z'}", "support.tickets"), "filters[0].where", "time zone"),
        (filtered("{column: opened, equals: '2020-01-01 25:00'}", "support.tickets"), "filters[0].where", "moment"),
        (filtered("{column: extra, equals: 1}"), "filters[0].where", "only is_null"),
        (filtered("{column: id, in: {user: countries}}"), "filters[0].where", "attribute countries is text"),
        (filtered("{column: id, equals: {user: name}}"), "filters[0].where", "attribute name is text"),
        (filtered("{column: country, equals: {user: desk}}"), "filters[0].where", "attribute desk is number"),
        (filtered("{not: {any: [{column: id, equals: a}]}}"), "filters[0].where.not.any[0]", "not a number"),
        (filtered("{sql: gone = 1}"), "filters[0].where.sql", "no column gone"),
        (filtered("{sql: current_date > born}"), "filters[0].where.sql", "no column current_date"),
        (filtered("{sql: rowid = 1}"), "filters[0].where.sql", "no column rowid"),
        (filtered("{sql: country = 5}"), "filters[0].where.sql", "compares number and text"),
        (filtered("{sql: country = $desk}"), "filters[0].where.sql", "compares number and text"),
        (filtered("{sql: id = 'a'}"), "filters[0].where.sql", "compares number and text"),
        (filtered("{sql: 'id IN ($countries)'}"), "filters[0].where.sql", "compares number and text"),
        (filtered("{sql: 'coalesce(country, 1) = 1'}"), "filters[0].where.sql", "compares number and text"),
        (filtered("{sql: lower(country) = id}"), "filters[0].where.sql", "compares number and text"),
        (filtered("{sql: born > id}"), "filters[0].where.sql", "compares date and number"),
        (filtered("{sql: id}"), "filters[0].where.sql", "it gives INTEGER"),
        (filtered("{sql: lower(id) = 'a'}"), "filters[0].where.sql", "DuckDB refuses it"),
        (filtered("{sql: born = 'never'}"), "filters[0].where.sql", "not a date"),
        (filtered("{sql: \"date_trunc('eon', born) = born\"}"), "filters[0].where.sql", "DuckDB refuses it"),
    ],
)
def test_what_does_not_fit_is_an_error(text: str, where: str, message: str) -> None:
    problems = found(text, "error")
    assert [each for each in problems if each.where == where and message in each.message], [str(e) for e in problems]
    with pytest.raises(PolicyInvalid):
        resolve(parse(text), WAREHOUSE, ANN)


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        (POLICY.replace("support.*:", "gone.*:"), "tables.gone.*", "matches no table"),
        (POLICY.replace("support.*:", "sales.*:"), "tables.sales.*", "more specific entry"),
        (POLICY.replace('      "*": {}\n', "").replace("email: {tags: [pii]}", "id:"), "", ""),
        (POLICY.replace('{level: public, columns: {"*": {}}}', ""), "tables.support.*", "names no columns"),
        (POLICY.replace("views: [sales.*]", "views: [gone.*]"), "views[0]", "matches no view"),
        (POLICY.replace('tables: ["*"]', "tables: [gone.*]"), "grants[0].tables[0]", "matches no table"),
        (POLICY.replace('tables: ["*"]', "tables: [secret]"), "grants[0].tables[0]", "is not classified"),
        (masked("hash", "columns: [secret.x]"), "masks[0].columns", "is not classified"),
        (masked("hash", "levels: [secret]"), "masks[0]", "matches no column"),
    ],
)
def test_what_may_be_meant_is_a_warning(text: str, where: str, message: str) -> None:
    assert found(text, "error") == []
    problems = found(text, "warning")
    assert not message or [each for each in problems if each.where == where and message in each.message], problems
    resolve(parse(text), WAREHOUSE, ANN)


@pytest.mark.parametrize(
    "where",
    [
        "{column: COUNTRY, in: {user: groups}}",
        "{column: country, equals: {user: name}}",
        "{column: spent, between: [0.1, {user: desk}]}",
        "{column: born, at_least: 2020-01-01}",
        "{column: extra, is_null: true}",
        "{column: id, equals: 9223372036854775808}",
        "{sql: 'country IN ($countries) OR country = $name OR spent < $desk'}",
        "{sql: \"born > '2020-01-01' AND spent < 1.5 AND country LIKE 'D%'\"}",
        "{sql: extra IS NULL}",
        "{sql: \"active AND coalesce(login, '') <> ''\"}",
    ],
)
def test_what_fits_is_no_error(where: str) -> None:
    assert check(parse(filtered(where)), WAREHOUSE) == []


def test_a_mask_on_a_generated_column_that_only_its_sources_have_is_no_error() -> None:
    assert found(masked("email_domain"), "error") == []
