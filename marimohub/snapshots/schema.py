"""What objects a warehouse has: tables, columns, views and the rest, as data that passes between processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """`type` is DuckDB's text for it, `generation` the expression of a generated column."""

    name: str
    type: str
    generation: str | None = None


@dataclass(frozen=True)
class Table:
    """A table with its number of rows."""

    schema: str
    name: str
    columns: tuple[Column, ...]
    rows: int = 0


@dataclass(frozen=True)
class View:
    """A view; `sql` is its CREATE VIEW statement."""

    schema: str
    name: str
    columns: tuple[Column, ...]
    sql: str


@dataclass(frozen=True)
class Other:
    """Any other object: kind (macro, sequence, type, index, constraint, default, comment) and readable name."""

    kind: str
    name: str


@dataclass(frozen=True)
class WarehouseSchema:
    """Everything that a warehouse's catalogue names."""

    tables: tuple[Table, ...] = ()
    views: tuple[View, ...] = ()
    others: tuple[Other, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain lists and dictionaries."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WarehouseSchema:
        """From what `to_dict` gave."""

        def columns(found: list[dict[str, Any]]) -> tuple[Column, ...]:
            return tuple(Column(**column) for column in found)

        return cls(
            tuple(Table(**{**table, "columns": columns(table["columns"])}) for table in data["tables"]),
            tuple(View(**{**view, "columns": columns(view["columns"])}) for view in data["views"]),
            tuple(Other(**other) for other in data["others"]),
        )


def table_key(schema: str, name: str) -> str:
    """One text for a table's two names."""
    return json.dumps([schema, name])
