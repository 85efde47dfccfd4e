"""What a governed snapshot is to hold, as the builder gets it: expressions over raw columns, no policies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ColumnPlan:
    """A column of the result: name, and a DuckDB expression over the raw table's columns."""

    name: str
    sql: str


@dataclass(frozen=True)
class TablePlan:
    """A table of the result: columns, the rows' condition (None: all), and the values of the named parameters in both.

    The key of hash masks is the parameter `$masking_key`, which the builder adds: it is in no plan.
    """

    schema: str
    name: str
    columns: tuple[ColumnPlan, ...]
    where: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """The same for two plans that give the same result from the same rows."""
        return _digest(asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TablePlan:
        """From a dictionary of the fields."""
        return cls(**{**data, "columns": tuple(ColumnPlan(**column) for column in data["columns"])})


@dataclass(frozen=True)
class ViewPlan:
    """A view that is created if it binds: `sql` is its CREATE VIEW statement."""

    schema: str
    name: str
    sql: str


@dataclass(frozen=True)
class Plan:
    """All of a governed snapshot. `omitted` (kind, name, reason) is what its manifest says is not there."""

    tables: tuple[TablePlan, ...] = ()
    views: tuple[ViewPlan, ...] = ()
    omitted: tuple[tuple[str, str, str], ...] = ()

    def digest(self) -> str:
        """Names the content that this plan makes of a given warehouse, in 64 hexadecimal digits."""
        return _digest({"tables": [asdict(t) for t in self.tables], "views": [asdict(v) for v in self.views]})

    def to_dict(self) -> dict[str, Any]:
        """As plain lists and dictionaries, for the builder's standard input."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """From what `to_dict` gave."""
        return cls(
            tuple(map(TablePlan.from_dict, data["tables"])),
            tuple(ViewPlan(**view) for view in data["views"]),
            tuple((kind, name, reason) for kind, name, reason in data["omitted"]),
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
