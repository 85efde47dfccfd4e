"""The warehouse snapshot, for code in a notebook.

    import marimohub.snapshot

    con = marimohub.snapshot.connect()
    con.sql("FROM sales.orders")
    marimohub.snapshot.describe()

The hub puts a new snapshot beside the old one when it is refreshed: run the cell that connects again to work with it.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

VARIABLE = "MARIMOHUB_SNAPSHOT"


class NoSnapshot(Exception):
    """There is no snapshot here: the notebook was not opened from the hub, or its access was taken away."""

    def __init__(self) -> None:
        super().__init__("There is no warehouse snapshot here. Open this notebook from the hub's Notebooks page.")


def path() -> Path:
    """The newest snapshot's file, under a name that no other snapshot will have.

    DuckDB opens a path several times while it connects, and takes two connections to one path for the same database:
    so the name that stays (`$MARIMOHUB_SNAPSHOT`, a link) is resolved first.

    Raises:
        NoSnapshot
    """
    name = os.environ.get(VARIABLE, "")
    try:
        return Path(name).resolve(strict=True) if name else _none()
    except OSError:
        return _none()


def connect() -> DuckDBPyConnection:
    """A read-only connection to the newest snapshot.

    What a query cannot hold in memory goes to the temp folder; how much it may hold follows from the server's limit.

    Raises:
        NoSnapshot, duckdb.Error
    """
    import duckdb

    from marimohub.singleuser.databases import settle

    connection = duckdb.connect(str(path()), read_only=True)
    settle(connection)
    return connection


def describe() -> dict[str, Any]:
    """What the snapshot is and what is in it.

    Returns:
        `created` (when the warehouse was copied, ISO 8601, UTC), `checked` (when it was last seen to be unchanged
        since), `version` (names the warehouse's content), `governed` (whether a policy applies); for governed ones
        `tables` (schema, name, rows, whether rows were filtered, columns with their types), `views`, and `omitted`
        (kind, name, reason): what the warehouse has and this snapshot does not.

    Raises:
        NoSnapshot
    """
    name = os.environ.get(VARIABLE, "")
    try:
        found = json.loads(Path(name).with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        raise NoSnapshot from None
    if not isinstance(found, dict):
        raise NoSnapshot
    return found


def age() -> timedelta:
    """How long ago the warehouse was as this snapshot shows it.

    Raises:
        NoSnapshot
    """
    return datetime.now(UTC) - datetime.fromisoformat(describe()["checked"])


def _none() -> Path:
    raise NoSnapshot
