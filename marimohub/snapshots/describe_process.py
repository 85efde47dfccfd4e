"""Reads the catalogue of a raw copy and the fingerprints of its tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from marimohub.snapshots.catalog import fingerprints, read_schema
from marimohub.snapshots.engine import opened


def describe(spec: dict[str, Any], _progress: Callable[[int], None]) -> dict[str, Any]:
    """Look at the raw copy at `spec["raw"]`.

    Returns:
        `schema` (a WarehouseSchema as a dictionary) and `fingerprints` (see catalog.py).
    """
    with opened(spec["raw"], "The warehouse's catalogue could not be read", spec, read_only=True) as connection:
        schema = read_schema(connection)
        size = connection.execute("SELECT block_size FROM system.main.pragma_database_size()").fetchone()
        assert size is not None
        found = fingerprints(connection, spec["raw"], schema, size[0], spec["threads"])
    return {"schema": schema.to_dict(), "fingerprints": found}
