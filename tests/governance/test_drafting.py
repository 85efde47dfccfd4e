"""The first policy for a warehouse: it is a policy, names everything, and shows nothing."""

from __future__ import annotations

import re

import pytest

from marimohub.governance.checking import check
from marimohub.governance.drafting import draft, guess_tags
from marimohub.governance.loading import parse
from marimohub.governance.resolve import resolve
from marimohub.governance.subject import Subject
from marimohub.snapshots.schema import Column, Table, View, WarehouseSchema

pytestmark = pytest.mark.unit

ODD = ("no", "123", "a.b", 'say "it"', "ünï: #x", "new\nline", "\x85", "null", "~", "- x", "{}", "'", " ", "x" * 300)
SCHEMA = WarehouseSchema(
    tables=(
        Table("main", "orders", (Column("id", "INTEGER"), Column("E-Mail", "VARCHAR"), Column("amount", "DOUBLE"))),
        Table("my schema", "tab.le", tuple(Column(name, "INTEGER") for name in ODD)),
        *(Table(name, name, (Column("x", "INTEGER"),)) for name in ODD if name != " "),
    ),
    views=(View("main", "v\nw", (Column("x", "INTEGER"),), "CREATE VIEW x AS SELECT 1 AS x"),),
)


@pytest.mark.parametrize("schema", [SCHEMA, WarehouseSchema()])
def test_the_draft_is_a_policy_without_problems_that_names_everything(schema: WarehouseSchema) -> None:
    policy = parse(draft(schema))
    assert [problem for problem in check(policy, schema) if problem.severity == "error"] == []
    for table in schema.tables:
        entry = policy.classification(table.schema, table.name)
        assert entry is not None and entry.pattern.exact
        for column in table.columns:
            assert entry.column(column.name.lower()) is not None, column


@pytest.mark.parametrize("role", ["viewer", "editor", "admin", None])
def test_under_the_draft_nobody_sees_anything(role: str | None) -> None:
    access = resolve(parse(draft(SCHEMA)), SCHEMA, Subject("ann", role, frozenset({"admins"})))
    assert not [column for table in access.tables for column in table.columns if column.visible]
    assert access.views == ()


def test_what_the_draft_has_in_comments_is_a_policy_too() -> None:
    text = re.sub(r"(?m)^# (?=clearance|grants|masks|attributes|filters|views|  )", "", draft(SCHEMA))
    policy = parse(text)
    assert [grant.name for grant in policy.grants] == ["Editors see all tables"]
    assert len(policy.views) == len(policy.masks) == len(policy.filters) == 1


@pytest.mark.parametrize(
    ("name", "tagged"),
    [
        *((name, True) for name in ("email", "E_Mail", "phoneNumber", "IBAN", "birth_date", "customer_name", "Name")),
        *((name, False) for name in ("id", "amount", "country", "status", "names_count_", "renamed_at")),
    ],
)
def test_tags_are_guessed_from_names(name: str, tagged: bool) -> None:
    assert guess_tags(Column(name, "VARCHAR")) == (["pii"] if tagged else [])
