"""Masks and conditions as DuckDB expressions over a raw table's columns; every value is a named parameter.

Functions and operators stand by their full names: a macro of the warehouse with the same name would come first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from marimohub.governance import predicates
from marimohub.governance.errors import PolicyError
from marimohub.governance.kinds import (
    Bind,
    Kind,
    column_sql,
    constant_sql,
    has_enum,
    kind_of,
    parse_date,
    value_sql,
)
from marimohub.governance.model import All, AnyOf, AttributeType, Compare, Condition, Mask, Not, Scalar, Sql, UserValue
from marimohub.governance.names import fold, quoted

MASKING_KEY = "$masking_key"
SIGNS = {
    "equals": "=",
    "not_equals": "<>",
    "less_than": "<",
    "at_most": "<=",
    "greater_than": ">",
    "at_least": ">=",
}
_AT = "'@'"
_DOMAIN = "'^[A-Za-z0-9.-]{1,253}$'"
_WIDE = ("UBIGINT", "HUGEINT", "UHUGEINT")


@dataclass
class Parameters:
    """Values that stand in SQL as `$p0`, `$p1` and so on."""

    values: dict[str, Any] = field(default_factory=dict)

    def bind(self, value: Any) -> str:
        """The parameter that stands for a value."""
        name = f"p{len(self.values)}"
        self.values[name] = value
        return f"${name}"


def call(function: str, *arguments: str) -> str:
    """A built-in function or operator, whatever the warehouse calls the same."""
    return f"system.main.{quoted(function)}({', '.join(arguments)})"


def misfit(mask: Mask, type_text: str) -> str | None:
    """Why a mask cannot be put on a column of this type; None if it can."""
    kind = kind_of(type_text)
    if mask.kind in ("partial", "email_domain") and kind.family != "text":
        return f"{mask.kind} is for text, and the column is {_short(type_text)}: use hash, null or hide"
    if mask.kind == "year" and kind.family not in ("date", "timestamp"):
        return f"year is for dates and timestamps, and the column is {_short(type_text)}"
    if mask.kind == "bucket" and mask.unit is not None:
        if kind.family not in ("date", "timestamp"):
            return f"bucket with a unit is for dates and timestamps, and the column is {_short(type_text)}"
        if kind.family == "date" and mask.unit == "hour":
            return "a DATE has no hours: use day or longer"
    elif mask.kind == "bucket" and kind.family != "number":
        return f"bucket with a size is for numbers, and the column is {_short(type_text)}"
    if mask.kind == "constant":
        try:
            constant_sql(mask.value, kind, lambda value: "")
        except PolicyError as error:
            return error.message
    return None


def _short(type_text: str) -> str:
    return type_text if len(type_text) <= 40 else type_text[:37] + "..."


def mask_sql(mask: Mask, column: str, type_text: str, bind: Bind) -> str:
    """The masked value of a column (by its own name) of a type that the mask fits; `hide` has none."""
    raw, kind = quoted(column), kind_of(type_text)
    text = f"CAST({raw} AS VARCHAR)"
    match mask.kind:
        case "null":
            if has_enum(type_text):
                return "CAST(NULL AS VARCHAR)"
            return f"CASE WHEN false THEN {raw} END" if kind.family == "other" else f"CAST(NULL AS {kind.name})"
        case "constant":
            return constant_sql(mask.value, kind, bind)
        case "hash":
            return call("left", call("sha256", call("||", MASKING_KEY, text)), "32")
        case "partial":
            fill = f"CAST({bind(mask.fill)} AS VARCHAR)"
            shown = call("concat", call("left", text, str(mask.first)), fill, call("right", text, str(mask.last)))
            short = f"{call('length', text)} < {mask.first + mask.last + 3}"
            return f"CASE WHEN {raw} IS NULL THEN NULL WHEN {short} THEN {fill} ELSE {shown} END"
        case "email_domain":
            domain = call("split_part", text, _AT, "-1")
            good = f"{call('contains', text, _AT)} AND {call('regexp_full_match', domain, _DOMAIN)}"
            shown = call("concat", "'***@'", domain)
            return f"CASE WHEN {raw} IS NULL THEN NULL WHEN {good} THEN {shown} ELSE '***' END"
        case "year":
            return _truncated("year", raw, kind)
        case "bucket" if mask.unit is not None:
            return _truncated(mask.unit, raw, kind)
        case "bucket" if mask.size is not None:
            return _bucket(mask.size, raw, kind, bind)
    raise AssertionError(f"{mask.kind} has no value")


def _truncated(unit: str, raw: str, kind: Kind) -> str:
    start = call("date_trunc", f"'{unit}'", raw)
    return f"CAST({start} AS {kind.name})"


def _bucket(size: int | float, raw: str, kind: Kind, bind: Bind) -> str:
    if kind.integer and float(size).is_integer():
        value, step = f"CAST({raw} AS HUGEINT)", f"CAST({bind(int(size))} AS HUGEINT)"
        over = call("%", call("+", call("%", value, step), step), step)
        # TRY: the lowest bucket of the lowest numbers is not in the type any more, and then NULL
        return f"TRY(CAST({call('-', value, over)} AS {'HUGEINT' if kind.name in _WIDE else 'BIGINT'}))"
    step = f"CAST({bind(float(size))} AS DOUBLE)"
    return call("*", call("floor", call("/", f"CAST({raw} AS DOUBLE)", step)), step)


@dataclass(frozen=True)
class Rows:
    """What a condition is about: a table's columns (folded name: name and type) and values of a person's attributes."""

    columns: Mapping[str, tuple[str, str]]
    types: Callable[[str], AttributeType | None]
    values: Callable[[str], tuple[Scalar, ...] | None]


def condition_sql(condition: Condition, rows: Rows, bind: Bind) -> str:
    """The condition of a row; the columns exist and fit (`checking`), and the person has every attribute of it."""
    match condition:
        case All(parts):
            return "(" + " AND ".join(condition_sql(part, rows, bind) for part in parts) + ")"
        case AnyOf(parts):
            return "(" + " OR ".join(condition_sql(part, rows, bind) for part in parts) + ")"
        case Not(part):
            return f"(NOT {condition_sql(part, rows, bind)})"
        case Compare():
            return _compare(condition, rows, bind)
        case Sql():
            return _escape(condition, rows, bind)


def needed(leaf: Compare | Sql) -> set[str]:
    """Names of the attributes that a part of a condition asks for."""
    if isinstance(leaf, Sql):
        return predicates.parameters(leaf.tree)
    return {value.attribute for value in leaf.values if isinstance(value, UserValue)}


def _compare(leaf: Compare, rows: Rows, bind: Bind) -> str:
    name, type_text = rows.columns[leaf.column]
    raw, kind = quoted(name), kind_of(type_text)
    if leaf.operator == "is_null":
        return f"({raw} IS {'' if leaf.values[0] else 'NOT '}NULL)"
    values: list[Scalar] = []
    for value in leaf.values:
        values.extend((rows.values(value.attribute) or ()) if isinstance(value, UserValue) else [value])
    column = column_sql(raw, kind, values)
    bound = [value_sql(value, kind, values, bind) for value in values]
    match leaf.operator:
        case "in":
            return f"({column} IN ({', '.join(bound)}))"
        case "not_in":
            return f"({column} NOT IN ({', '.join(bound)}))"
        case "between":
            return f"({column} BETWEEN {bound[0]} AND {bound[1]})"
        case "starts_with":
            return call("starts_with", column, bound[0])
    return f"({column} {SIGNS[leaf.operator]} {bound[0]})"


def _escape(leaf: Sql, rows: Rows, bind: Bind) -> str:
    def parameter(name: str) -> list[str]:
        declared = rows.types(name)
        assert declared is not None
        return [parameter_sql(value, declared, bind) for value in rows.values(name) or ()]

    return predicates.render(
        leaf.tree, predicates.Names(column=lambda name: quoted(rows.columns[fold(name)][0]), parameter=parameter)
    )


def parameter_sql(value: Scalar, declared: AttributeType, bind: Bind) -> str:
    """An attribute's value in the SQL escape, of a type of its own."""
    if declared.type == "date":
        return f"CAST({bind(parse_date(str(value)).isoformat())} AS DATE)"
    if declared.type == "number":
        wide = "BIGINT" if -(2**63) <= value < 2**63 else "HUGEINT"  # type: ignore[operator]
        return f"CAST({bind(value)} AS {'DOUBLE' if isinstance(value, float) else wide})"
    return f"CAST({bind(value)} AS {'BOOLEAN' if declared.type == 'boolean' else 'VARCHAR'})"
