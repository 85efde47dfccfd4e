"""What one person sees of a warehouse, and why."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from marimohub.governance.model import Mask
from marimohub.governance.names import display
from marimohub.snapshots.plan import Plan, TablePlan, ViewPlan
from marimohub.snapshots.schema import View, WarehouseSchema


@dataclass(frozen=True)
class Omission:
    """Something of the warehouse that is not there for the person."""

    kind: str
    name: str
    reason: str


@dataclass(frozen=True)
class ColumnAccess:
    """A column, seen or not: the mask and the rule that won, the grant that covers it, and one sentence why."""

    name: str
    type: str
    level: str | None
    tags: tuple[str, ...]
    visible: bool
    mask: Mask | None
    rule: str | None
    reason: str
    granted_by: str | None


@dataclass(frozen=True)
class TableAccess:
    """A table with all its columns, the names of the filters that apply, and why no row is there, if none can be."""

    schema: str
    name: str
    columns: tuple[ColumnAccess, ...]
    filters: tuple[str, ...]
    no_rows: str | None
    made: TablePlan = field(repr=False)

    @property
    def visible(self) -> bool:
        """Whether any column is."""
        return any(column.visible for column in self.columns)

    def plan(self) -> TablePlan:
        """What the builder is to make of it."""
        return self.made


@dataclass(frozen=True)
class Access:
    """Tables of which a column is visible, views that may be there, and what is not there.

    `hidden` are classified tables without a visible column, for explanations. `digest` is the same for two people who
    see the same.
    """

    tables: tuple[TableAccess, ...]
    views: tuple[View, ...]
    omitted: tuple[Omission, ...]
    hidden: tuple[TableAccess, ...]
    clearance: str
    digest: str

    def plan(self) -> Plan:
        """What the builder is to make."""
        return make_plan(self.tables, self.views, self.omitted)


def make_plan(tables: tuple[TableAccess, ...], views: tuple[View, ...], omitted: tuple[Omission, ...]) -> Plan:
    """The builder's part of an access."""
    return Plan(
        tuple(table.plan() for table in tables),
        tuple(ViewPlan(view.schema, view.name, view.sql) for view in views),
        tuple((each.kind, each.name, each.reason) for each in omitted),
    )


def nothing(schema: WarehouseSchema) -> Access:
    """What everybody sees as long as there is no policy."""
    reason = "no policy has been applied yet"
    omitted = [
        Omission(kind, display(each.schema, each.name), reason)
        for kind, found in (("table", schema.tables), ("view", schema.views))
        for each in found
    ]
    return Access((), (), tuple(omitted), (), "none", make_plan((), (), ()).digest())


def digest_of(plan: Plan) -> str:
    """The plan's own digest, without the copies that make it slow for hundreds of tables."""
    tables = [
        {
            "schema": table.schema,
            "name": table.name,
            "columns": [{"name": column.name, "sql": column.sql} for column in table.columns],
            "where": table.where,
            "parameters": table.parameters,
        }
        for table in plan.tables
    ]
    views = [{"schema": view.schema, "name": view.name, "sql": view.sql} for view in plan.views]
    text = json.dumps({"tables": tables, "views": views}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
