"""Why a person sees what they see, and how two views of a warehouse differ, as data for pages and the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marimohub.governance.access import Access, ColumnAccess, TableAccess
from marimohub.governance.checking import check
from marimohub.governance.model import Policy
from marimohub.governance.names import display
from marimohub.governance.resolve import resolve
from marimohub.governance.subject import Subject
from marimohub.snapshots.schema import WarehouseSchema


def explain(
    policy: Policy, schema: WarehouseSchema, subject: Subject, counts: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Everything about one person's access; PolicyInvalid as `resolve`.

    `counts` are rows that the person sees, by the table's name as it is displayed (`schema.table`).
    """
    access = resolve(policy, schema, subject)
    rows = {display(table.schema, table.name): table.rows for table in schema.tables}
    tables = [_table(table) for table in (*access.tables, *access.hidden)]
    for table in tables:
        table["rows"] = rows.get(table["display"], 0)
        table["visible_rows"] = None if counts is None else counts.get(table["display"])
    return {
        "user": subject.user,
        "role": subject.role,
        "groups": sorted(subject.groups),
        "clearance": access.clearance,
        "attributes": {
            name: {
                "type": declared.type,
                "list": declared.list,
                "held": subject.values(policy, name) is not None,
                "value": subject.attributes.get(name),
            }
            for name, declared in sorted(policy.attributes.items())
        },
        "digest": access.digest,
        "tables": tables,
        "views": [display(view.schema, view.name) for view in access.views],
        "omitted": [{"kind": each.kind, "name": each.name, "reason": each.reason} for each in access.omitted],
        "warnings": [problem.to_dict() for problem in check(policy, schema)],
    }


def _table(table: TableAccess) -> dict[str, Any]:
    return {
        "schema": table.schema,
        "name": table.name,
        "display": display(table.schema, table.name),
        "visible": table.visible,
        "filters": list(table.filters),
        "no_rows": table.no_rows,
        "columns": [_column(column) for column in table.columns],
    }


def _column(column: ColumnAccess) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": column.type,
        "level": column.level,
        "tags": list(column.tags),
        "visible": column.visible,
        "mask": None if column.mask is None else column.mask.describe(),
        "rule": column.rule,
        "reason": column.reason,
        "granted_by": column.granted_by,
    }


def diff(a: Access, b: Access) -> dict[str, Any]:
    """What `b` shows otherwise than `a`, by displayed names; `same` if the snapshots would be equal.

    A table in `changed` has its columns that came, went, or are masked otherwise, and whether its rows are chosen
    otherwise.
    """
    before, after = _shown(a), _shown(b)
    views = {display(view.schema, view.name): view.sql for view in a.views}
    views_after = {display(view.schema, view.name): view.sql for view in b.views}
    changed = [
        found for name in sorted(before.keys() & after.keys()) if (found := _changes(name, before[name], after[name]))
    ]
    return {
        "same": a.digest == b.digest,
        "tables_added": sorted(after.keys() - before.keys()),
        "tables_removed": sorted(before.keys() - after.keys()),
        "changed": changed,
        "views_added": sorted(views_after.keys() - views.keys()),
        "views_removed": sorted(views.keys() - views_after.keys()),
        "views_changed": sorted(name for name in views.keys() & views_after.keys() if views[name] != views_after[name]),
    }


def _shown(access: Access) -> dict[str, TableAccess]:
    return {display(table.schema, table.name): table for table in access.tables}


def _changes(name: str, a: TableAccess, b: TableAccess) -> dict[str, Any] | None:
    before = {column.name: column for column in a.columns if column.visible}
    after = {column.name: column for column in b.columns if column.visible}
    masks = [
        {"column": column, "before": _mask(before[column]), "after": _mask(after[column])}
        for column in before
        if column in after and before[column].mask != after[column].mask
    ]
    added = [column for column in after if column not in before]
    removed = [column for column in before if column not in after]
    # parameters are numbered over the whole table: compare the conditions with their values in place
    rows = _rows(a) != _rows(b)
    if not (masks or added or removed or rows):
        return None
    return {
        "table": name,
        "columns_added": added,
        "columns_removed": removed,
        "masks": masks,
        "rows": rows,
        "filters_before": list(a.filters),
        "filters_after": list(b.filters),
        "no_rows_before": a.no_rows,
        "no_rows_after": b.no_rows,
    }


def _mask(column: ColumnAccess) -> str | None:
    return None if column.mask is None else column.mask.describe()


def _rows(table: TableAccess) -> tuple[str | None, list[Any]]:
    """A table's condition with parameters numbered anew, and their values."""
    made = table.plan()
    where, values = made.where, []
    for number in sorted((int(name[1:]) for name in made.parameters), reverse=True):
        mark = f"CAST($p{number} AS"
        if where is not None and mark in where:
            where = where.replace(mark, "CAST(? AS")
            values.append(made.parameters[f"p{number}"])
    return where, values
