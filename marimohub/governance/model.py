"""A policy as data, after it was read. Names in it are folded; nothing here knows YAML or SQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from marimohub.governance.names import Pattern, fold
from marimohub.governance.predicates import Node

ROLES = ("viewer", "editor", "admin")
ATTRIBUTE_TYPES = ("text", "number", "date", "boolean")
PROTECTIVE = ("hide", "null", "constant", "hash", "year", "bucket", "email_domain", "partial")
UNITS = ("hour", "day", "week", "month", "quarter", "year")
OPERATORS = (
    "equals",
    "not_equals",
    "in",
    "not_in",
    "less_than",
    "at_most",
    "greater_than",
    "at_least",
    "between",
    "starts_with",
    "is_null",
)

Scalar = str | int | float | bool


@dataclass(frozen=True)
class AttributeType:
    """What values an attribute of people has: one of ATTRIBUTE_TYPES, or a list of such."""

    type: str
    list: bool = False


BUILT_IN = {"name": AttributeType("text"), "groups": AttributeType("text", list=True)}


@dataclass(frozen=True)
class Who:
    """Whom a rule is about: every key that is not None must be met, by any one of its values."""

    everyone: bool = False
    roles: frozenset[str] | None = None
    groups: frozenset[str] | None = None
    users: frozenset[str] | None = None
    attributes: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()
    clearance: str | None = None


EVERYONE = Who(everyone=True)


@dataclass(frozen=True)
class Clearance:
    """People who may see columns up to a level."""

    level: str
    who: Who


@dataclass(frozen=True)
class ColumnRule:
    """Level (None: the table's) and tags of a column."""

    level: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classification:
    """What is said of a table or a pattern of tables: `rest` is for columns that `columns` does not name."""

    pattern: Pattern
    level: str
    tags: tuple[str, ...]
    columns: tuple[tuple[str, ColumnRule], ...]
    rest: ColumnRule | None
    where: str
    line: int = 0

    @cached_property
    def by_name(self) -> dict[str, ColumnRule]:
        """The named columns by folded name."""
        return dict(self.columns)

    def column(self, folded: str) -> tuple[str, frozenset[str]] | None:
        """Level and tags of a column; None if it is not classified."""
        rule = self.by_name.get(folded, self.rest)
        return None if rule is None else (rule.level or self.level, frozenset(self.tags) | frozenset(rule.tags))


@dataclass(frozen=True)
class Grant:
    """Tables and views that people may see; `columns` (folded) narrows it, None is all."""

    name: str
    to: Who
    tables: tuple[Pattern, ...]
    columns: tuple[str, ...] | None
    where: str
    line: int = 0


@dataclass(frozen=True)
class Mask:
    """What is done to values: `kind` is one of PROTECTIVE; the other fields are for the kinds that have them."""

    kind: str
    first: int = 0
    last: int = 0
    fill: str = "***"
    value: Scalar = ""
    size: int | float | None = None
    unit: str | None = None

    def describe(self) -> str:
        """In a few words, for people."""
        if self.kind == "partial":
            return f"partial (first {self.first}, last {self.last})"
        if self.kind == "bucket":
            return f"bucket ({self.unit or self.size})"
        return f"constant ({self.value!r})" if self.kind == "constant" else self.kind


@dataclass(frozen=True)
class MaskRule:
    """A mask for the columns that any selector picks; `columns` are folded (schema, table, column)."""

    name: str
    mask: Mask
    tags: frozenset[str]
    columns: frozenset[tuple[str, str, str]]
    levels: frozenset[str]
    for_: Who
    except_: Who | None
    where: str
    line: int = 0


@dataclass(frozen=True)
class UserValue:
    """The value of a person's attribute, or the built-in `name` and `groups`."""

    attribute: str


@dataclass(frozen=True)
class All:
    """Every part holds."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Condition


@dataclass(frozen=True)
class Compare:
    """A column (folded) against values: one, two for `between`, any number for `in`; a boolean for `is_null`."""

    column: str
    operator: str
    values: tuple[Scalar | UserValue, ...]
    where: str = ""
    line: int = 0


@dataclass(frozen=True)
class Sql:
    """An administrator's expression, already parsed and allowed."""

    text: str
    tree: Node
    where: str = ""
    line: int = 0


Condition = All | AnyOf | Not | Compare | Sql


@dataclass(frozen=True)
class Filter:
    """Rows that people may see of the tables."""

    name: str
    tables: tuple[Pattern, ...]
    for_: Who
    except_: Who | None
    condition: Condition
    where: str
    line: int = 0


@dataclass(frozen=True)
class Policy:
    """A whole policy; `levels` from the lowest to the highest."""

    levels: tuple[str, ...]
    tags: dict[str, str] = field(default_factory=dict, hash=False)
    attributes: dict[str, AttributeType] = field(default_factory=dict, hash=False)
    clearance: tuple[Clearance, ...] = ()
    tables: tuple[Classification, ...] = ()
    views: tuple[Pattern, ...] = ()
    grants: tuple[Grant, ...] = ()
    masks: tuple[MaskRule, ...] = ()
    filters: tuple[Filter, ...] = ()

    def rank(self, level: str) -> int:
        """How high a level is: 0 is the lowest."""
        return self.levels.index(level)

    def attribute(self, name: str) -> AttributeType | None:
        """The type of an attribute, built-in ones included; None if there is no such."""
        return BUILT_IN.get(name) or self.attributes.get(name)

    def classification(self, schema: str, table: str) -> Classification | None:
        """The most specific entry for a table; None if it is not classified."""
        place = fold(schema), fold(table)
        for pattern in (Pattern(*place), Pattern(place[0], None), Pattern(None, None)):
            if pattern in self._entries:
                return self._entries[pattern]
        return None

    @cached_property
    def _entries(self) -> dict[Pattern, Classification]:
        return {entry.pattern: entry for entry in self.tables}


def walk(condition: Condition) -> list[Compare | Sql]:
    """The leaves of a condition."""
    if isinstance(condition, All | AnyOf):
        return [leaf for part in condition.parts for leaf in walk(part)]
    return walk(condition.part) if isinstance(condition, Not) else [condition]
