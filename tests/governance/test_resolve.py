"""The rules of what a person sees, one by one, on a small warehouse."""

from __future__ import annotations

import time
from dataclasses import replace

import duckdb
import pytest

from marimohub.governance.access import Access, ColumnAccess
from marimohub.governance.explain import diff, explain
from marimohub.governance.loading import parse
from marimohub.governance.resolve import resolve
from marimohub.governance.subject import Subject
from marimohub.snapshots.plan import Plan
from marimohub.snapshots.schema import Column, Table, WarehouseSchema
from tests.governance.policies import ANN, POLICY, WAREHOUSE, filtered, masked

pytestmark = pytest.mark.unit


def access(text: str, subject: Subject = ANN, schema: WarehouseSchema = WAREHOUSE) -> Access:
    return resolve(parse(text), schema, subject)


def column(found: Access, name: str, table: str = "customers") -> ColumnAccess:
    (chosen,) = [t for t in (*found.tables, *found.hidden) if t.name == table]
    return next(each for each in chosen.columns if each.name == name)


def names(found: Access) -> list[str]:
    return [table.name for table in found.tables]


def test_what_is_not_classified_is_absent_for_administrators_too() -> None:
    found = access(POLICY, Subject("root", "admin", frozenset({"dpo"})))
    assert names(found) == ["customers", "tickets"]
    assert ("table", "main.secret") in [(each.kind, each.name) for each in found.omitted]


def test_without_a_grant_nothing_is_there() -> None:
    found = access(POLICY.replace("{everyone: true}", "{users: [bob]}"))
    assert found.tables == () and found.views == ()
    assert {each.reason for each in found.omitted if each.kind == "table"} == {
        "No grant covers it.",
        "not classified: the policy does not name it",
    }


def test_a_column_that_the_table_does_not_name_is_absent() -> None:
    found = access(POLICY.replace('      "*": {}\n', ""))
    assert [c.name for c in found.tables[0].columns if c.visible] == ["Email", "login"][:1]
    assert column(found, "id").reason.startswith("Not classified")


def test_names_are_compared_by_ascii_case_only() -> None:
    schema = WarehouseSchema((Table("main", "t", (Column("Ä", "INTEGER"), Column("B", "INTEGER")), 1),))
    text = """
version: 1
levels: [a]
tables: {T: {columns: {ä: {}, b: {}}}}
grants: [{name: g, to: {everyone: true}, tables: [T]}]
"""
    with pytest.raises(Exception, match="no column ä"):
        access(text, schema=schema)
    found = access(text.replace("ä", "Ä"), schema=schema)
    assert [each.visible for each in found.tables[0].columns] == [True, True]


def test_the_most_protective_mask_wins_and_the_first_of_equals() -> None:
    text = POLICY + (
        "masks:\n"
        "  - {name: a, tags: [pii], mask: {partial: {first: 1}}}\n"
        "  - {name: b, tags: [pii], mask: {constant: x}}\n"
        "  - {name: c, tags: [pii], mask: {constant: y}}\n"
        "  - {name: d, tags: [pii], mask: hash}\n"
    )
    assert column(access(text), "Email").rule == "b"
    hidden = column(access(text + "  - {name: e, tags: [pii], mask: hide}\n"), "Email")
    assert (hidden.visible, hidden.rule) == (False, "e")


def test_a_level_above_the_clearance_hides_unless_a_mask_by_level_applies() -> None:
    text = POLICY.replace("email: {", "email: {level: secret, ")
    assert not column(access(text), "Email").visible
    assert not column(access(text + "masks: [{name: m, tags: [pii], mask: hash}]\n"), "Email").visible
    opened = text + "masks: [{name: l, levels: [secret], mask: {partial: {first: 1}}}]\n"
    assert column(access(opened), "Email").rule == "l"
    both = opened.replace("masks: [", "masks: [{name: m, tags: [pii], mask: hash}, ")
    assert column(access(both), "Email").rule == "m"
    cleared = column(access(opened, replace(ANN, groups=frozenset({"dpo"}))), "Email")
    assert cleared.visible and cleared.mask is None


def test_a_generated_column_is_as_protected_as_its_sources() -> None:
    assert column(access(masked("hash")), "login").rule == "m"
    by_name = access(masked("hash", "columns: [sales.customers.email]"))
    assert column(by_name, "login").rule == "m"
    assert not column(access(POLICY.replace("email: {", "email: {level: secret, ")), "login").visible
    unclassified = POLICY.replace('      "*": {}\n', "      login: {}\n").replace("email: {tags: [pii]}", "id: {}")
    assert "made of" in column(access(unclassified), "login").reason


def test_a_generated_column_that_cannot_be_masked_like_its_source_is_hidden() -> None:
    columns = (Column("Email", "VARCHAR"), Column("size", "BIGINT", 'length("Email")'))
    schema = WarehouseSchema((Table("sales", "customers", columns), WAREHOUSE.tables[1]), WAREHOUSE.views)
    found = column(access(masked("{partial: {first: 1}}"), schema=schema), "size")
    assert not found.visible and "Made of" in found.reason


@pytest.mark.parametrize("expression", ["(SELECT 1)", "gone + 1", "what ( ever"])
def test_a_generated_column_of_unknown_sources_is_as_protected_as_the_whole_table(expression: str) -> None:
    columns = (Column("id", "INTEGER"), Column("Email", "VARCHAR"), Column("login", "VARCHAR", expression))
    schema = WarehouseSchema((Table("sales", "customers", columns), WAREHOUSE.tables[1]), WAREHOUSE.views)
    assert column(access(masked("hash"), schema=schema), "login").rule == "m"


@pytest.mark.parametrize("value", [None, [], "DE", [5], [True], ["DE", 5], {"DE": 1}, 5])
def test_a_filter_whose_attribute_is_lacking_leaves_no_rows(value: object) -> None:
    text = filtered("{any: [{column: id, at_least: 0}, {column: country, in: {user: countries}}]}")
    subject = Subject("ann", "admin", attributes={} if value is None else {"countries": value})  # type: ignore[dict-item]
    table = access(text, subject).tables[0]
    assert table.plan().where == "false" and table.plan().parameters == {}
    assert table.no_rows and "countries" in table.no_rows


def test_a_view_needs_the_policy_and_a_grant() -> None:
    assert [view.name for view in access(POLICY).views] == ["active_customers"]
    assert access(POLICY.replace("views: [sales.*]", "")).views == ()
    assert access(POLICY.replace('tables: ["*"]', "tables: [sales.customers]")).views == ()
    reasons = {each.name: each.reason for each in access(POLICY).omitted}
    assert reasons["main.other"] == "the policy's views: do not name it"
    assert "never" in reasons["main.f"] and "never" in reasons["main.s"]


def test_hostile_values_stay_values() -> None:
    evil = "'; DROP TABLE t; -- $p0 \" \\ é"
    text = filtered("{any: [{column: country, equals: {user: region}}, {sql: 'country = $region'}]}")
    plan = access(text, Subject("ann", attributes={"region": evil}, role="viewer")).tables[0].plan()
    assert evil not in (plan.where or "")
    assert list(plan.parameters.values()) == [evil, evil]


def test_a_macro_of_the_warehouse_does_not_unmask() -> None:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE customers AS SELECT 'ann@example.org' AS \"Email\"")
    functions = ["sha256(x)", "concat(a, b, c)", "concat(a, b)", '"||"(a, b)', "split_part(a, b, c)", '"left"(a, b)',
                 "contains(a, b)", "regexp_full_match(a, b)", "length(a)", '"right"(a, b)']  # fmt: skip
    for function in functions:
        first = function.partition("(")[2].rstrip(")").split(", ")[0]
        connection.execute(f"CREATE OR REPLACE MACRO {function} AS {first}")
    for mask, expected in (
        ("hash", None),
        ("{partial: {first: 1, last: 1}}", "a***g"),
        ("email_domain", "***@example.org"),
    ):
        plan = access(masked(mask)).tables[0].plan()
        (sql,) = [each.sql for each in plan.columns if each.name == "Email"]
        values = {name: value for name, value in plan.parameters.items() if f"${name}" in sql}
        if mask == "hash":
            values["masking_key"] = "k" * 64
        (found,) = connection.execute(f"SELECT {sql} FROM customers", values).fetchall()
        assert "ann" not in found[0]
        assert expected is None or found[0] == expected


def test_the_lowest_numbers_have_no_bucket_rather_than_an_error() -> None:
    schema = WarehouseSchema(
        (Table("sales", "customers", (Column("id", "BIGINT"),)), WAREHOUSE.tables[1]), WAREHOUSE.views
    )
    text = masked("{bucket: {size: 10}}", "columns: [sales.customers.id]").replace("email: {tags: [pii]}", "id: {}")
    plan = access(text, schema=schema).tables[0].plan()
    rows = duckdb.execute(
        f"SELECT {plan.columns[0].sql} FROM (VALUES ({-(2**63)}), (-1), (19), (NULL)) t(id)", plan.parameters
    ).fetchall()
    assert rows == [(None,), (-10,), (10,), (None,)]


BOUND = filtered("{column: country, in: {user: countries}}")


def test_the_digest_is_the_same_for_people_who_see_the_same() -> None:
    one = access(BOUND, Subject("ann", "editor", frozenset({"a"}), {"countries": ["DE", "FR"], "desk": 1}))
    two = access(BOUND, Subject("bob", "viewer", frozenset({"b"}), {"desk": 2, "countries": ["FR", "DE", "FR"]}))
    assert one.digest == two.digest and len(one.digest) == 64
    turned = WarehouseSchema(WAREHOUSE.tables[::-1], WAREHOUSE.views[::-1], WAREHOUSE.others)
    assert access(BOUND, ANN, turned).digest == access(BOUND, ANN).digest


def test_the_digest_follows_everything_that_is_seen() -> None:
    digests = [
        access(text, subject, schema).digest
        for text, subject, schema in [
            (POLICY, ANN, WAREHOUSE),
            (BOUND, ANN, WAREHOUSE),
            (BOUND, replace(ANN, attributes={"countries": ["DE"]}), WAREHOUSE),
            (BOUND, replace(ANN, attributes={}), WAREHOUSE),
            (masked("hash"), ANN, WAREHOUSE),
            (masked("null"), ANN, WAREHOUSE),
            (masked("{constant: a}"), ANN, WAREHOUSE),
            (masked("{constant: b}"), ANN, WAREHOUSE),
            (masked("hide"), ANN, WAREHOUSE),
            (filtered("{column: country, equals: {user: name}}"), ANN, WAREHOUSE),
            (filtered("{column: country, equals: {user: name}}"), replace(ANN, user="bob"), WAREHOUSE),
            (filtered("{column: id, equals: 1}"), ANN, WAREHOUSE),
            (filtered("{column: id, equals: 1.0}"), ANN, WAREHOUSE),
            (filtered("{sql: id = 1}"), ANN, WAREHOUSE),
            (filtered("{sql: id = 2}"), ANN, WAREHOUSE),
            (POLICY.replace("views: [sales.*]", ""), ANN, WAREHOUSE),
            (POLICY, ANN, replace(WAREHOUSE, views=(replace(WAREHOUSE.views[0], sql="CREATE VIEW x"),))),
        ]
    ]
    assert len(set(digests)) == len(digests)


def test_the_plan_passes_between_processes() -> None:
    plan = access(BOUND).plan()
    assert Plan.from_dict(plan.to_dict()).digest() == plan.digest() == access(BOUND).digest


def test_a_large_warehouse_is_resolved_quickly() -> None:
    columns = tuple(Column(f"c{n}", "VARCHAR") for n in range(20))
    many = tuple(Table("support", f"t{n}", columns) for n in range(200))
    schema = WarehouseSchema(WAREHOUSE.tables + many, WAREHOUSE.views)
    policy = parse(masked("hash"))
    resolve(policy, schema, ANN)
    start = time.perf_counter()
    resolve(policy, schema, ANN)
    assert time.perf_counter() - start < 0.25


def test_an_explanation_names_rules_and_counts() -> None:
    found = explain(parse(masked("hash")), WAREHOUSE, ANN, {"sales.customers": 2})
    assert (found["clearance"], found["user"]) == ("internal", "ann")
    table = next(each for each in found["tables"] if each["display"] == "sales.customers")
    assert (table["rows"], table["visible_rows"]) == (3, 2)
    email = next(each for each in table["columns"] if each["name"] == "Email")
    assert (email["mask"], email["rule"], email["granted_by"]) == ("hash", "m", "All")
    assert found["attributes"]["region"]["held"] is False


def test_a_difference_names_what_changes() -> None:
    same = diff(access(POLICY), access(POLICY))
    assert same["same"] and same["changed"] == []
    found = diff(access(POLICY), access(masked("hash").replace("views: [sales.*]", "")))
    assert found["views_removed"] == ["sales.active_customers"]
    (changed,) = found["changed"]
    assert changed["masks"] == [
        {"column": "Email", "before": None, "after": "hash"},
        {"column": "login", "before": None, "after": "hash"},
    ]
    assert not changed["rows"]
    (rows,) = diff(access(POLICY), access(BOUND))["changed"]
    assert rows["rows"] and rows["filters_after"] == ["f"]
    other = replace(ANN, attributes={"countries": ["DE"]})
    assert diff(access(BOUND), access(BOUND, other))["changed"][0]["rows"]
    gone = diff(access(POLICY), access(POLICY.replace('["*"]', "[support.*]")))
    assert gone["tables_removed"] == ["sales.customers"]
