"""A text that is not a policy is refused, with the place and with what to do."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marimohub.governance.errors import PolicyInvalid, Problem
from marimohub.governance.loading import parse
from marimohub.governance.model import Compare, Mask
from tests.governance.policies import POLICY, filtered, masked

pytestmark = pytest.mark.unit


def problems(text: str) -> list[Problem]:
    with pytest.raises(PolicyInvalid) as caught:
        parse(text)
    assert caught.value.problems
    return caught.value.problems


def replaced(old: str, new: str) -> str:
    assert old in POLICY
    return POLICY.replace(old, new)


def test_the_policy_of_these_tests_is_valid() -> None:
    policy = parse(POLICY)
    assert policy.levels == ("public", "internal", "secret")
    assert [grant.name for grant in policy.grants] == ["All"]


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "", "empty"),
        ("[]", "", "must be a mapping"),
        ("just text", "", "must be a mapping"),
        ("version: 1\n", "", "levels is missing"),
        (replaced("version: 1", "version: 2"), "version", "must be 1"),
        (replaced("version: 1", "version: true"), "version", "must be 1"),
        (replaced("version: 1", 'version: "1"'), "version", "must be 1"),
        (replaced("levels: [public, internal, secret]", "levels: []"), "levels", "empty list"),
        (replaced("[public, internal, secret]", "[public, internal, secret, public]"), "levels[3]", "twice"),
        (replaced("[public, internal, secret]", "[public, internal, secret, 5]"), "levels[3]", "must be text"),
        (replaced("[public, internal, secret]", "[public, internal, secret, true]"), "levels[3]", "must be text"),
        (POLICY + "mask: []\n", "mask", "unknown key"),
        (replaced("{type: number}", "{type: float}"), "attributes.desk.type", "must be one of text"),
        (replaced("{type: number}", "{}"), "attributes.desk", "type is missing"),
        (replaced("{type: number}", "{type: number, list: yes}"), "attributes.desk.list", "must be true or false"),
        (replaced("desk:", "Desk:"), "attributes.Desk", "lower-case"),
        (replaced("desk:", "groups:"), "attributes.groups", "built in"),
        (replaced("desk:", "name:"), "attributes.name", "built in"),
        (replaced("level: secret, groups", "level: top, groups"), "clearance[1].level", "must be one of public"),
        (replaced("groups: [dpo]", "groups: []"), "clearance[1].groups", "empty list"),
        (replaced("groups: [dpo]", "groups: dpo"), "clearance[1].groups", "must be a list"),
        (replaced("groups: [dpo]", "clearance: public"), "clearance[1].clearance", "inside `clearance:`"),
        (replaced("{level: secret, groups: [dpo]}", "{level: secret}"), "clearance[1]", "names nobody"),
        (replaced("[viewer, editor, admin]", "[owner]"), "clearance[0].roles", "'owner' is no role"),
        (replaced("{tags: [pii]}", "{tags: [pi]}"), "tables.sales.customers.columns.email.tags", "tag 'pi'"),
        (replaced("email: {tags", "email: {lvl: x, tags"), "tables.sales.customers.columns.email.lvl", "unknown key"),
        (replaced("email: {tags: [pii]}", "email: x\n      Email:"), "tables.sales.customers.columns.Email", "already"),
        (replaced("support.*:", "sup*:"), "tables.sup*", "no pattern"),
        (replaced("support.*:", '"*.x":'), "tables.*.x", "cannot be a star"),
        (replaced("support.*:", "a.b.c:"), "tables.a.b.c", "more than two parts"),
        (replaced("support.*:", "a..b:"), "tables.a..b", "is not a name"),
        (replaced("support.*:", "Sales.Customers:"), "tables.Sales.Customers", "already"),
        (replaced("name: All, ", ""), "grants[0]", "name is missing"),
        (replaced("to: {everyone: true}, ", ""), "grants[0]", "to is missing"),
        (replaced("{everyone: true}", "{}"), "grants[0].to", "names nobody"),
        (replaced("{everyone: true}", "{everyone: false}"), "grants[0].to.everyone", "must be true"),
        (replaced("{everyone: true}", "{everyone: true, users: [a]}"), "grants[0].to.everyone", "stand alone"),
        (replaced("{everyone: true}", "{user: [a]}"), "grants[0].to.user", "unknown key"),
        (replaced("{everyone: true}", "{attributes: {town: [a]}}"), "grants[0].to.attributes.town", "not among"),
        (replaced("{everyone: true}", "{attributes: {desk: [a]}}"), "grants[0].to.attributes.desk", "not of the type"),
        (replaced("{everyone: true}", "{attributes: {desk: [true]}}"), "grants[0].to.attributes.desk", "not of"),
        (replaced("{everyone: true}", "{attributes: {}}"), "grants[0].to.attributes", "is empty"),
        (replaced("{everyone: true}", "everybody"), "grants[0].to", "must be a mapping"),
        (replaced('tables: ["*"]', 'tables: ["*"], columns: [id]'), "grants[0].columns", "all exact"),
        (replaced('tables: ["*"]', 'tables: [a], columns: ["*"]'), "grants[0].columns", "leave `columns` out"),
        (replaced('tables: ["*"]', "tables: []"), "grants[0].tables", "empty list"),
        (replaced("name: All", "name: 5"), "grants[0].name", "put it in quotes"),
        (masked("hash").replace("name: m", "name: All"), "masks[0].name", "is taken"),
        (masked("sha"), "masks[0].mask", "must be one of hide"),
        (masked(""), "masks[0].mask", "is empty"),
        (masked("true"), "masks[0].mask", "must be one of"),
        (masked("[hash]"), "masks[0].mask", "must be a mapping"),
        (masked("{partial: {first: 0, last: 0}}"), "masks[0].mask.partial", "both 0"),
        (masked("{partial: {}}"), "masks[0].mask.partial", "both 0"),
        (masked("{partial: {first: -1}}"), "masks[0].mask.partial.first", "from 0 to"),
        (masked("{partial: {first: 1.5}}"), "masks[0].mask.partial.first", "whole number"),
        (masked("{partial: {first: true}}"), "masks[0].mask.partial.first", "whole number"),
        (masked("{partial: {first: 1, keep: 2}}"), "masks[0].mask.partial.keep", "unknown key"),
        (masked("{constant: null}"), "masks[0].mask.constant", "must be text"),
        (masked("{constant: [a]}"), "masks[0].mask.constant", "must be text"),
        (masked("{bucket: {size: 0}}"), "masks[0].mask.bucket.size", "above 0"),
        (masked("{bucket: {size: -5}}"), "masks[0].mask.bucket.size", "above 0"),
        (masked("{bucket: {size: 9223372036854775808}}"), "masks[0].mask.bucket.size", "above 0"),
        (masked("{bucket: {unit: decade}}"), "masks[0].mask.bucket.unit", "must be one of hour"),
        (masked("{bucket: {unit: day, size: 1}}"), "masks[0].mask.bucket", "either"),
        (masked("{bucket: {size: 1}, constant: x}"), "masks[0].mask", "one mask"),
        (masked("hash", "tags: [pi]"), "masks[0].tags", "tag 'pi'"),
        (masked("hash", "tags: []"), "masks[0].tags", "empty list"),
        (masked("hash", "levels: [top]"), "masks[0].levels", "'top'"),
        (masked("hash", "columns: [id]"), "masks[0].columns", "names no column"),
        (masked("hash", "for: {everyone: true}"), "masks[0]", "selects nothing"),
        (masked("hash", more=", except: {everyone: true}"), "masks[0].except.everyone", "for nobody"),
        (masked("hash", more=", except: {}"), "masks[0].except", "names nobody"),
        (masked("hash", more=", unless: {}"), "masks[0].unless", "unknown key"),
        (filtered("{}"), "filters[0].where", "must be one of all"),
        (filtered("true"), "filters[0].where", "must be a mapping"),
        (filtered("{all: []}"), "filters[0].where.all", "empty list"),
        (filtered("{all: [{column: id}]}"), "filters[0].where.all[0]", "needs one operator"),
        (filtered("{column: id, equals: 1, in: [2]}"), "filters[0].where", "needs one operator"),
        (filtered("{column: 5, equals: 1}"), "filters[0].where.column", "must be text"),
        (filtered("{column: id, equals: null}"), "filters[0].where.equals", "use is_null"),
        (filtered("{column: id, in: []}"), "filters[0].where.in", "empty list"),
        (filtered("{column: id, in: [null]}"), "filters[0].where.in[0]", "must be text, a number"),
        (filtered("{column: id, in: 5}"), "filters[0].where.in", "must be a list"),
        (filtered("{column: id, in: {user: desk}}"), "filters[0].where.in.user", "no list"),
        (filtered("{column: id, equals: {user: countries}}"), "filters[0].where.equals.user", "is a list"),
        (filtered("{column: id, equals: {user: email}}"), "filters[0].where.equals.user", "not among"),
        (filtered("{column: id, equals: {usr: desk}}"), "filters[0].where.equals.usr", "unknown key"),
        (filtered("{column: id, between: [1]}"), "filters[0].where.between", "two values"),
        (filtered("{column: id, between: [5, 1]}"), "filters[0].where.between", "above the high"),
        (filtered("{column: id, is_null: yes}"), "filters[0].where.is_null", "must be true or false"),
        (filtered("{column: id, like: x}"), "filters[0].where.like", "unknown key"),
        (filtered("{not: {column: id, like: x}}"), "filters[0].where.not.like", "unknown key"),
        (filtered("{sql: 'true) union select (1'}"), "filters[0].where.sql", "cannot be read"),
        (filtered("{sql: 'id = $town'}"), "filters[0].where.sql", "$town is not among"),
        (filtered("{sql: 'country = $countries'}"), "filters[0].where.sql", "write column IN"),
        (filtered("{sql: 5}"), "filters[0].where.sql", "must be text"),
        (filtered("{column: id, equals: 1}", tables=""), "filters[0].tables", "empty list"),
        (filtered(f"{{column: id, equals: {2**127}}}"), "filters[0].where.equals", "2^127"),
        (filtered(f"{{column: id, equals: {10**60}}}"), "", "2^127"),
        (filtered("{column: id, equals: .inf}"), "", "more than one way"),
        (filtered("{column: id, equals: .NaN}"), "", "more than one way"),
        (filtered("{column: id, equals: 1e999}"), "", "must be finite"),
        (filtered("{column: id, equals: 010}"), "", "more than one way"),
        (filtered("{column: id, equals: 0x1F}"), "", "more than one way"),
        (filtered("{column: id, equals: 1_000}"), "", "more than one way"),
        (filtered('{column: id, equals: "\\ud800"}'), "", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(text: str, where: str, message: str) -> None:
    found = problems(text)
    assert [each for each in found if each.where == where and message in each.message], [str(each) for each in found]
    assert all(each.line or each.where == "" for each in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "anchors"),
        ("a: *x\n", "alias"),
        ("a: !!python/object:os.system x\n", "tags"),
        ("a: !!python/object/apply:os.system ['true']\n", "tags"),
        ("a: !!str 5\n", "tags"),
        ("a: !x 5\n", "tags"),
        ("version: 1\nversion: 1\n", "twice"),
        ("on: 1\n1: 2\n", "not text"),
        ("null: 2\n", "not text"),
        ("true: 2\n", "not text"),
        ("~: 2\n", "not text"),
        ("? [a, b]\n: 2\n", "a key must be text"),
        ("? {a: b}\n: 2\n", "a key must be text"),
        ("<<: {version: 1}\n", "merge keys"),
        ("a: 1\n---\nb: 2\n", "second YAML document"),
        ("a: [1\n", "not YAML"),
        ("a: \x01\n", "not YAML"),
        ("a:\n\t- b\n", "not YAML"),
        ("[" * 5000, "nested more than"),
        ("a: " + "[" * 40 + "]" * 40, "nested more than"),
        ("".join(f"{' ' * n}a:\n" for n in range(100)), "nested more than"),
        ("{" * 200_000, "a key must be text"),
        ("- a\n" * 200_000, "more than 100000 entries"),
        ("a: " + "x" * 1_000_001, "larger than"),
        ("ä" * 600_000, "larger than"),
        ("\ud800", "surrogate"),
    ],
)
def test_yaml_that_policies_do_not_use_is_refused(text: str, message: str) -> None:
    start = time.monotonic()
    assert message in problems(text)[0].message
    assert time.monotonic() - start < 5


def test_a_long_list_is_read_quickly() -> None:
    names = ", ".join(f"u{n}" for n in range(90_000))
    start = time.monotonic()
    policy = parse(replaced("{everyone: true}", f"{{users: [{names}]}}"))
    assert policy.grants[0].to.users is not None and len(policy.grants[0].to.users) == 90_000
    assert time.monotonic() - start < 10


def test_a_billion_laughs_are_no_more_than_one() -> None:
    lines = ["a0: &a0 [lol]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    assert "anchors" in problems("\n".join(lines))[0].message


def test_the_line_of_a_mistake_is_told() -> None:
    found = problems(replaced("level: secret, groups", "level: top, groups"))
    assert found[0].line == 1 + POLICY.splitlines().index("  - {level: secret, groups: [dpo]}")
    assert f"(line {found[0].line})" in str(found[0])


def test_every_mistake_is_found_at_once() -> None:
    text = replaced("level: secret, groups", "level: top, groups").replace("[pii]", "[pi]").replace("All", "5")
    assert len(problems(text)) == 3


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("2020-01-01 10:00:00", "2020-01-01 10:00:00"),
        ("+1", 1),
        ("0", 0),
        ("-0.5", -0.5),
        ("1e3", 1000.0),
        ("true", True),
        ("False", False),
        ('"true"', "true"),
        ('"010"', "010"),
        ("'5'", "5"),
        ("1.2.3", "1.2.3"),
        ("e", "e"),
        ("e5", "e5"),
        ("E5", "E5"),
        (".", "."),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5E-3", -0.0015),
        ("1e", "1e"),
        ("-", "-"),
        ("9223372036854775808", 2**63),
    ],
)
def test_constants_are_what_they_look_like(written: str, value: object) -> None:
    if written == "-":
        written = "'-'"
    condition = parse(filtered(f"{{column: id, equals: {written}}}")).filters[0].condition
    assert isinstance(condition, Compare)
    assert condition.values == (value,)
    assert type(condition.values[0]) is type(value)


def test_null_as_a_mask_is_the_null_mask() -> None:
    assert parse(masked("null")).masks[0].mask == Mask("null")
    assert parse(masked('"null"')).masks[0].mask == Mask("null")


def test_a_table_without_a_level_has_the_highest() -> None:
    assert parse(replaced("level: internal\n    columns", "columns")).tables[0].level == "secret"


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text("[]{}:,-&*!|>?'\"\n ab1", max_size=60))
def test_any_text_is_a_policy_or_refused_with_a_reason(text: str) -> None:
    with pytest.raises(PolicyInvalid):
        parse(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(POLICY)), st.integers(0, 20), st.text("[]{}:,-&*!'\"\n abc1", max_size=6))
def test_a_policy_with_a_damaged_place_is_read_or_refused(at: int, gone: int, put: str) -> None:
    try:
        parse(POLICY[:at] + put + POLICY[at + gone :])
    except PolicyInvalid as error:
        assert error.problems
