"""Policies, problems, attributes and the warehouse as data for JSON: for the API and for the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from marimohub.governance.errors import Problem
from marimohub.governance.store import PolicyEntry, StoredPolicy
from marimohub.governing import Attributes
from marimohub.permissions import isoformat
from marimohub.snapshots.schema import Column, WarehouseSchema


def entry_model(entry: PolicyEntry | None) -> dict[str, Any]:
    """A revision without its text; revision 0 if there is no policy."""
    if entry is None:
        return {"revision": 0, "author": None, "comment": "", "created": None}
    return {
        "revision": entry.revision,
        "author": entry.author,
        "comment": entry.comment,
        "created": isoformat(entry.created),
    }


def policy_model(stored: StoredPolicy | None, *, text: bool = True) -> dict[str, Any]:
    """A revision, with its text (empty if there is no policy) or without."""
    model = entry_model(stored.entry if stored is not None else None)
    return {**model, "text": stored.text if stored is not None else ""} if text else model


def problem_models(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """Problems in the order of the text."""
    return [problem.to_dict() for problem in problems]


def schema_model(schema: WarehouseSchema) -> dict[str, Any]:
    """The warehouse's objects for the API: without the texts of views and generated columns."""

    def columns(found: Iterable[Column]) -> list[dict[str, Any]]:
        return [{"name": c.name, "type": c.type, "generated": c.generation is not None} for c in found]

    return {
        "tables": [
            {"schema": t.schema, "name": t.name, "rows": t.rows, "columns": columns(t.columns)} for t in schema.tables
        ],
        "views": [{"schema": v.schema, "name": v.name, "columns": columns(v.columns)} for v in schema.views],
        "others": [{"kind": other.kind, "name": other.name} for other in schema.others],
    }


def attributes_model(user: str, found: Attributes) -> dict[str, Any]:
    """A person's attributes for the API."""
    declared = {name: {"type": kind.type, "list": kind.list} for name, kind in found.declared.items()}
    return {"user": user, "attributes": found.values, "declared": declared, "unusable": found.unusable}


def own_explanation(explained: dict[str, Any]) -> dict[str, Any]:
    """An explanation as the person themselves gets it: how much is withheld is not told, nor what ails the policy."""
    tables = [
        {**table, "rows": table["rows"] if table["visible"] and not table["filters"] else None}
        for table in explained["tables"]
    ]
    return {**explained, "tables": tables, "warnings": []}
