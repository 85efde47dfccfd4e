"""Random warehouses, policies and people for property tests. Policies are valid for the warehouse that comes along."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import yaml
from hypothesis import strategies as st

from marimohub.governance.checking import check
from marimohub.governance.loading import parse
from marimohub.governance.model import Mask
from marimohub.governance.names import display
from marimohub.governance.sql import misfit
from marimohub.governance.subject import Subject
from marimohub.snapshots.schema import Column, Table, WarehouseSchema

SCHEMAS = ["main", "Sales", "odd.schema"]
TABLES = ["customers", "Orders", 'with "quotes"', "größe", "select"]
COLUMNS = ["id", "Email", "a b", 'say "hi"', "Größe", "select", "x.y", "country", "amount", "ÄÖ", "*"]
ENUM = "ENUM('red', 'green', 'it''s')"
TYPES = [
    "INTEGER", "BIGINT", "DOUBLE", "DECIMAL(9,2)", "VARCHAR", "DATE", "TIMESTAMP", "BOOLEAN", "UBIGINT",
    "HUGEINT", ENUM,
]  # fmt: skip
LEVELS = ["public", "internal", "secret"]
TAGS = ["pii", "money"]
ATTRIBUTES = {
    "countries": {"type": "text", "list": True},
    "region": {"type": "text"},
    "limits": {"type": "number", "list": True},
    "limit": {"type": "number"},
    "since": {"type": "date"},
    "staff": {"type": "boolean"},
}
GROUPS = ["finance", "dpo", "DE"]
USERS = ["ann", "bob", "it's me"]

texts = st.one_of(
    st.sampled_from(["", "a", "DE", "de", "ann@example.org", "a@b@c-d.example", "@", "x@", "no at", "ann", "'; --"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
    st.sampled_from(["it's", "é", "é", "😀😀😀😀😀😀", "日本語テキスト", "a\nb", "x@ünï.de", "red"]),
)  # fmt: skip
dates = st.one_of(st.dates(date(1, 1, 1), date(9999, 12, 31)), st.dates(date(2020, 1, 1), date(2020, 3, 1)))
moments = st.one_of(
    st.datetimes(datetime(1, 1, 8), datetime(9999, 12, 31)), st.datetimes(datetime(2020, 1, 1), datetime(2020, 1, 3))
)
small = st.integers(-12, 12)
# the ends of a range come up more often than its middle
often = st.sampled_from([True, True, False, True, True])
rarely = often.map(lambda value: not value)
doubles = st.one_of(
    small.map(float), st.sampled_from([0.1, -0.1, 0.5, float("nan"), float("inf"), -float("inf"), 1e300, 2.0**53]),
    st.floats(),
)  # fmt: skip


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    """Small ones, and those at the ends."""
    return st.one_of(st.integers(max(low, -12), 12), st.integers(low, high), st.sampled_from([low, high, high - 1]))


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "INTEGER": integers(-(2**31), 2**31 - 1),
    "BIGINT": integers(-(2**63), 2**63 - 1),
    "UBIGINT": integers(0, 2**64 - 1),
    "HUGEINT": integers(-(2**127) + 1, 2**127 - 1),
    "DOUBLE": doubles,
    "DECIMAL(9,2)": st.decimals(-100, 100, places=2) | st.sampled_from([Decimal("0.10"), Decimal("9999999.99")]),
    "VARCHAR": texts,
    "DATE": dates,
    "TIMESTAMP": moments,
    "BOOLEAN": st.booleans(),
    ENUM: st.sampled_from(["red", "green", "it's"]),
}


@dataclass(frozen=True)
class Case:
    """A warehouse with its rows, a policy's text and a person. `parts` says what each generated column is made of."""

    schema: WarehouseSchema
    rows: dict[tuple[str, str], list[dict[str, Any]]]
    parts: dict[tuple[str, str, str], list[str]]
    text: str
    subject: Subject


@st.composite
def tables(draw: st.DrawFn, generated: bool = True) -> tuple[Table, list[dict[str, Any]], dict[str, list[str]]]:
    """A table, its rows, and what its generated columns (of the type VARCHAR) are made of."""
    names = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=5, unique=True))
    columns: list[Column] = []
    parts: dict[str, list[str]] = {}
    for name in names:
        if generated and columns and draw(st.sampled_from([False, True, False])):
            used = draw(st.lists(st.sampled_from([c.name for c in columns]), min_size=1, max_size=2, unique=True))
            quoted = ", ".join('"' + each.replace('"', '""') + '"' for each in used)
            columns.append(Column(name, "VARCHAR", f"concat({quoted}, 'x')"))
            parts[name] = sorted({*used, *(below for each in used for below in parts.get(each, []))})
        else:
            columns.append(Column(name, draw(st.sampled_from(TYPES))))
    row = st.fixed_dictionaries({c.name: st.none() | VALUES[c.type] for c in columns})
    rows = draw(st.lists(row, max_size=6))
    return Table("", "", tuple(columns), len(rows)), rows, parts


def _dates_as_text(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, date):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value


def constants(kind: str) -> st.SearchStrategy[Any]:
    """Values as a policy writes them, for comparing with a column of this type."""
    if kind.startswith("ENUM"):
        return st.sampled_from(["red", "green", "blue", ""])
    if kind == "BOOLEAN":
        return st.booleans()
    if kind == "DOUBLE":
        return small | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.1, 2**80])
    if kind.startswith("DECIMAL"):
        return small | st.sampled_from([0.1, 0.25, 9999999.99, 0.001, -5.5, 2**90, 1e200, 1e-9])
    if kind in ("INTEGER", "BIGINT", "UBIGINT", "HUGEINT"):
        return integers(-(2**127), 2**127 - 1) | st.sampled_from([0.5, -1.5, 3.0, 1e18, 2**63, 2**64])
    if kind == "VARCHAR":
        return texts.filter(writable)
    return VALUES[kind].map(_dates_as_text)


def writable(text: str) -> bool:
    """Whether YAML can write a text and give it back."""
    try:
        return bool(yaml.safe_load(yaml.safe_dump([text], allow_unicode=True)) == [text])
    except yaml.YAMLError:
        return False


def attribute_for(kind: str, many: bool) -> list[str]:
    """Attributes of people that a column of this type can be compared with."""
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        return ["countries", "groups"] if many else ["region", "name"]
    if kind in ("DATE", "TIMESTAMP"):
        return [] if many else ["since"]
    if kind == "BOOLEAN":
        return [] if many else ["staff"]
    return ["limits"] if many else ["limit"]


@st.composite
def comparisons(draw: st.DrawFn, columns: Sequence[Column]) -> dict[str, Any]:
    """One comparison with a column."""
    column = draw(st.sampled_from(list(columns)))
    operators = ["equals", "not_equals", "in", "not_in", "is_null"]
    if column.type != "BOOLEAN":
        operators += ["less_than", "at_most", "greater_than", "at_least", "between"]
    if column.type == "VARCHAR" or column.type.startswith("ENUM"):
        operators.append("starts_with")
    operator = draw(st.sampled_from(operators))

    def value() -> Any:
        if draw(rarely):
            return {"user": draw(st.sampled_from(attribute_for(column.type, many=False)))}
        return draw(constants(column.type))

    given: Any
    if operator == "is_null":
        given = draw(st.booleans())
    elif operator in ("in", "not_in"):
        lists = attribute_for(column.type, many=True)
        asks = draw(st.booleans())
        if lists and asks:
            given = {"user": draw(st.sampled_from(lists))}
        else:
            given = draw(st.lists(constants(column.type), min_size=1, max_size=4))
    elif operator == "between":
        given = [value(), value()]
        if all(isinstance(each, int | float) for each in given):
            given.sort()
    else:
        given = value()
    name = column.name
    if name.isascii() and draw(st.booleans()):
        name = name.swapcase()
    return {"column": name, operator: given}


def conditions(columns: Sequence[Column]) -> st.SearchStrategy[dict[str, Any]]:
    """Conditions, most of them of several parts."""
    leaf = comparisons(columns)

    def joined(part: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        parts = st.lists(part, min_size=2, max_size=3)
        return st.one_of(
            parts.map(lambda found: {"any": found}),
            part.map(lambda found: {"not": found}),
            parts.map(lambda found: {"all": found}),
        )

    return st.one_of(joined(leaf), leaf, joined(st.one_of(joined(leaf), leaf)))


masks = st.one_of(
    st.sampled_from([None, "hash", "year", "email_domain", "hide"]),
    st.builds(lambda a, b, fill: {"partial": {"first": a, "last": b + (a + b == 0), **fill}}, st.integers(0, 3),
              st.integers(0, 3), st.sampled_from([{}, {"fill": "…"}])),
    st.sampled_from(["", "hidden", "2020-02-02", 0, 7, 0.5, True]).map(lambda value: {"constant": value}),
    st.sampled_from([1, 2, 10, 7, 0.5, 0.1, 1000000007]).map(lambda size: {"bucket": {"size": size}}),
    st.sampled_from(["day", "week", "month", "quarter", "year", "hour"]).map(lambda unit: {"bucket": {"unit": unit}}),
)  # fmt: skip


def masks_for(kind: str) -> st.SearchStrategy[Any]:
    """Masks that fit a column of this type."""
    fitting = masks.filter(lambda mask: misfit(mask_of(mask), kind) is None)
    if kind != "VARCHAR":
        return fitting
    return fitting | st.builds(lambda a, b: {"partial": {"first": a, "last": b}}, st.integers(1, 2), st.integers(0, 2))


def mask_of(mask: Any) -> Mask:
    """A mask as the policy's model has it."""
    kind = "null" if mask is None else mask if isinstance(mask, str) else next(iter(mask))
    if kind == "constant":
        return Mask(kind, value=mask["constant"])
    return Mask(kind, **mask["bucket"]) if kind == "bucket" else Mask(kind)


@st.composite
def whos(draw: st.DrawFn, nested: bool = True, everyone: bool = True) -> dict[str, Any]:
    """Some people."""
    if everyone and draw(st.booleans()):
        return {"everyone": True}
    options: dict[str, st.SearchStrategy[Any]] = {
        "roles": st.lists(st.sampled_from(["viewer", "editor", "admin"]), min_size=1, unique=True),
        "groups": st.lists(st.sampled_from(GROUPS), min_size=1, unique=True),
        "users": st.lists(st.sampled_from(USERS), min_size=1, unique=True),
        "attributes": st.sampled_from(
            [{"countries": ["DE", "FR"]}, {"staff": [True]}, {"limit": [1, 5]}, {"region": ["x"], "staff": [False]}]
        ),
    }
    if nested:
        options["clearance"] = st.sampled_from(LEVELS)
    keys = draw(st.lists(st.sampled_from(sorted(options)), min_size=1, max_size=2, unique=True))
    return {key: draw(options[key]) for key in keys}


@st.composite
def policies(draw: st.DrawFn, schema: WarehouseSchema) -> str:
    """The text of a policy that is valid for the warehouse."""
    names = {display(table.schema, table.name): table for table in schema.tables}
    labels = st.fixed_dictionaries(
        {},
        optional={"level": st.sampled_from(LEVELS), "tags": st.lists(st.sampled_from(TAGS), max_size=2, unique=True)},
    )

    def entry(columns: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = dict(draw(labels))
        if draw(often):
            found.setdefault("level", draw(st.sampled_from(["internal", "public", "secret"])))
        chosen = [column for column in columns if column != "*" and draw(st.booleans())]
        found["columns"] = {column: draw(labels) or draw(st.sampled_from([None, {}])) for column in chosen}
        if draw(often):
            found["columns"]["*"] = draw(labels)
        return found

    patterns = ["*", *sorted({display(table.schema) + ".*" for table in schema.tables}), *names]
    tables_ = {
        pattern: entry([column.name for column in names[pattern].columns] if pattern in names else [])
        for pattern in patterns
        if draw(often)
    }
    some = st.lists(st.sampled_from(patterns), min_size=1, max_size=3, unique=True)
    exact = st.sampled_from(sorted(names))

    def rule(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"name": name}
        if draw(rarely):
            found["for"] = draw(whos())
        if draw(rarely):
            found["except"] = draw(whos(everyone=False))
        return found

    grants = []
    for number in range(draw(st.integers(1, 3))):
        grant: dict[str, Any] = {"name": f"grant {number}", "to": draw(whos()), "tables": draw(some)}
        if number == 0 and draw(often):
            grant.update({"to": {"everyone": True}, "tables": ["*"]})
        if draw(rarely):
            table = draw(exact)
            columns = [column.name for column in names[table].columns if column.name != "*"]
            if columns:
                grant["tables"] = [table]
                grant["columns"] = draw(st.lists(st.sampled_from(columns), min_size=1, unique=True))
        grants.append(grant)
    selectors = st.sampled_from(
        [["columns"], ["tags"], ["columns"], ["levels"], ["tags", "levels"], ["columns", "tags"]]
    )
    rules = []
    for number in range(draw(st.sampled_from([1, 2, 0, 4, 3]))):
        mask = {**rule(f"mask {number}"), "mask": draw(st.sampled_from(["hash", None, "hide"]) | masks)}
        for key in draw(selectors):
            if key == "columns":
                table = draw(exact)
                column = draw(st.sampled_from([column.name for column in names[table].columns]))
                mask[key] = [f"{table}." + '"' + column.replace('"', '""') + '"']
                kind = next(each.type for each in names[table].columns if each.name == column)
                if draw(often):
                    mask["mask"] = draw(masks_for(kind))
            else:
                mask[key] = draw(st.lists(st.sampled_from(TAGS if key == "tags" else LEVELS), min_size=1, unique=True))
        rules.append(mask)
    filters = []
    for number in range(draw(st.sampled_from([1, 0, 2]))):
        table = draw(exact)
        where = draw(conditions(names[table].columns))
        filters.append({**rule(f"filter {number}"), "tables": [table], "where": where})
    clearance = [
        {"level": draw(st.sampled_from(LEVELS)), **draw(whos(nested=False))} for _ in range(draw(st.integers(0, 2)))
    ]
    if draw(often):
        clearance.append({"level": draw(st.sampled_from(LEVELS)), "everyone": True})
    policy = {
        "version": 1, "levels": LEVELS, "tags": dict.fromkeys(TAGS, ""), "attributes": ATTRIBUTES,
        "clearance": clearance, "tables": tables_, "grants": grants, "masks": rules, "filters": filters,
    }  # fmt: skip
    return repaired(policy, schema)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def written(policy: dict[str, Any]) -> str:
    """A policy as YAML."""
    return str(yaml.dump(policy, Dumper=_Dumper, allow_unicode=True, sort_keys=False))


def repaired(policy: dict[str, Any], schema: WarehouseSchema) -> str:
    """The policy without the masks and filters that do not fit the warehouse's types."""
    while True:
        text = written(policy)
        errors = [problem for problem in check(parse(text), schema) if problem.severity == "error"]
        if not errors:
            return text
        for kind in ("masks", "filters"):
            bad = {int(found.group(1)) for e in errors if (found := re.match(rf"{kind}\[(\d+)\]", e.where))}
            policy[kind] = [rule for number, rule in enumerate(policy[kind]) if number not in bad]
        assert all(problem.where.startswith(("masks", "filters")) for problem in errors), errors


good = st.fixed_dictionaries(
    {
        "countries": st.lists(st.sampled_from(["DE", "FR", "it's", "", "red"]), min_size=1, max_size=3),
        "region": texts,
        "limits": st.lists(st.sampled_from([1, 5, 0.5, -3, 2**70]), min_size=1, max_size=3),
        "limit": st.sampled_from([1, 5, 0.1, 2**64]),
        "since": st.sampled_from(["2020-01-02", "1999-12-31"]),
        "staff": st.booleans(),
    }
)
WRONG: dict[str, list[Any]] = {
    "countries": ["DE", [], ["DE", 5], None],
    "region": [5, None, ["x"], True],
    "limits": [[True], ["1"], [], 5],
    "limit": [2**130, float("nan"), "5", True],
    "since": ["2020-02-30", "20200102", "", 5],
    "staff": [1, "true", 0],
}
bad = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in WRONG.items()})
subjects = st.builds(
    lambda user, role, groups, attributes: Subject(user, role, frozenset(groups), attributes),
    st.sampled_from(USERS),
    st.sampled_from(["viewer", "editor", "admin", None]),
    st.sets(st.sampled_from(GROUPS)),
    st.one_of(good, good, bad, st.builds(lambda a, b: {**a, **b}, good, bad)),
)


@st.composite
def cases(draw: st.DrawFn, generated: bool = True) -> Case:
    """All of it."""
    places = st.tuples(st.sampled_from(SCHEMAS), st.sampled_from(TABLES))
    found: list[Table] = []
    rows, parts = {}, {}
    for schema, name in draw(st.lists(places, min_size=1, max_size=3, unique=True)):
        table, content, made = draw(tables(generated))
        found.append(Table(schema, name, table.columns, table.rows))
        rows[(schema, name)] = content
        parts.update({(schema, name, column): sources for column, sources in made.items()})
    warehouse = WarehouseSchema(tuple(found))
    return Case(warehouse, rows, parts, draw(policies(warehouse)), draw(subjects))
