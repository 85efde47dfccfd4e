"""Process B of a governed build: makes the database that people get, from masked Parquet alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from marimohub.snapshots.engine import failure, full_name, opened
from marimohub.snapshots.errors import HelperFailed
from marimohub.snapshots.types import literal, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def build(spec: dict[str, Any], progress: Callable[[int], None]) -> dict[str, Any]:
    """Make the database at `spec["destination"]`, mode 0440, without a log beside it.

    Args:
        spec: `destination`, `tables` (list of `schema`, `name`, `file`), `views` (list of `schema`, `name`, `sql`),
            `memory_limit`, `threads`, `temporary`.
        progress: told how many tables are done.
    Returns:
        `unbound`, the views that do not bind against what is there, as [schema, name].
    """
    unbound = finish(spec, spec["tables"], progress)
    os.chmod(spec["destination"], 0o440)
    return {"unbound": unbound}


def finish(spec: dict[str, Any], tables: list[dict[str, Any]], progress: Callable[[int], None]) -> list[list[str]]:
    """Make tables and all views in a database that may have other tables. Returns the views that do not bind."""
    destination = spec["destination"]
    with opened(
        destination,
        "The snapshot could not be written",
        spec,
        read_only=False,
        files=[table["file"] for table in tables],
    ) as connection:
        for done, table in enumerate(tables):
            try:
                _create(connection, table)
            except duckdb.Error as error:
                raise failure(error, f"{table['schema']}.{table['name']} could not be built") from error
            progress(done + 1)
        unbound = _create_views(connection, spec["views"])
        connection.execute("CHECKPOINT")
    if os.path.exists(f"{destination}.wal"):
        raise HelperFailed("The snapshot was built, but its log could not be folded in. Try again.")
    return unbound


def _create(connection: DuckDBPyConnection, table: dict[str, Any]) -> None:
    described = json.loads(Path(table["file"]).with_suffix(".json").read_bytes())
    columns = ", ".join(
        f"CAST(c{i} AS {column['type']}) AS {quoted(column['name'])}" for i, column in enumerate(described["columns"])
    )
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {full_name(connection, table['schema'])}")
    connection.execute(
        f"CREATE TABLE {full_name(connection, table['schema'], table['name'])} AS "
        f"SELECT {columns} FROM read_parquet({literal(table['file'])})"
    )


def _create_views(connection: DuckDBPyConnection, views: list[dict[str, Any]]) -> list[list[str]]:
    """Create the views that bind, also those over other views. Returns those that do not."""
    left = views
    while left:
        again = [view for view in left if not _create_view(connection, view)]
        if len(again) == len(left):
            break
        left = again
    return [[view["schema"], view["name"]] for view in left]


def _create_view(connection: DuckDBPyConnection, view: dict[str, Any]) -> bool:
    try:
        statements = connection.extract_statements(view["sql"])
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.CREATE:
            return False
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {full_name(connection, view['schema'])}")
        connection.execute(view["sql"])
    except duckdb.Error:
        return False
    return True
