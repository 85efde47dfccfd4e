"""Process B for a warehouse of which only some tables changed: works on a copy of the last snapshot of the same plan.

Like `build_process` it never opened raw data. What the former snapshot held and this one does not must be in no byte of
the result: the dropped tables' blocks and metadata are filled with zeros before anything new is written, and what the
last checkpoint freed after that. Tables that share a block with a dropped one are made anew, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import duckdb

from marimohub.snapshots.build_process import finish
from marimohub.snapshots.engine import failure, full_name, lock_down
from marimohub.snapshots.scrub import Unscrubbable, scrub, table_blocks
from marimohub.snapshots.transfer import transfer

# Replacing more of the blocks than this costs more than building all anew.
WORTH = 0.7


def update(spec: dict[str, Any], progress: Callable[[int], None]) -> dict[str, Any]:
    """Make the database at `spec["destination"]` from the one at `spec["base"]`.

    Args:
        spec: as of `build_process.build`, and for each table `keep`: whether the base has just this content.
        progress: told how many tables are done.
    Returns:
        as `build`; `unbound` is None if all should be built anew instead. Then nothing is left at the destination.
    """
    destination = spec["destination"]
    try:
        _copy(spec["base"], destination)
        kept = {(table["schema"], table["name"]) for table in spec["tables"] if table["keep"]}
        if not _drop_all_but(destination, kept, spec):
            os.unlink(destination)
            return {"unbound": None}
        scrub(destination)
        new = [table for table in spec["tables"] if (table["schema"], table["name"]) not in kept]
        progress(len(kept))
        unbound = finish(spec, new, lambda done: progress(len(kept) + done))
        scrub(destination)
    except (Unscrubbable, duckdb.Error) as error:
        os.unlink(destination)
        if isinstance(error, duckdb.Error):
            raise failure(error, "The snapshot could not be brought up to date") from error
        return {"unbound": None}
    os.chmod(destination, 0o440)
    return {"unbound": unbound}


def _copy(base: str, destination: str) -> None:
    source = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(destination, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        transfer(source, target, os.fstat(source).st_size, lambda: None)
    finally:
        os.close(source)
        os.close(target)


def _drop_all_but(path: str, kept: set[tuple[str, str]], spec: dict[str, Any]) -> bool:
    """Drop all views and the tables that are not kept. Takes out of `kept` what shares blocks with those.

    Returns:
        False if too little would stay; then nothing was dropped.
    """
    with duckdb.connect(path) as connection:
        lock_down(connection, spec, [])
        blocks = table_blocks(connection)
        kept &= set(blocks)
        gone = set().union(*(blocks[table] for table in blocks if table not in kept))
        while sharing := {table for table in kept if blocks[table] & gone}:
            kept -= sharing
            gone = gone.union(*(blocks[table] for table in sharing))
        if len(gone) > WORTH * len(set().union(*blocks.values())):
            return False
        views = connection.execute("SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        for schema, name in views:
            connection.execute(f"DROP VIEW {full_name(connection, schema, name)}")
        for schema, name in set(blocks) - kept:
            connection.execute(f"DROP TABLE {full_name(connection, schema, name)}")
        for schema in {schema for schema, _ in [*blocks, *views]} - {schema for schema, _ in kept} - {"main"}:
            connection.execute(f"DROP SCHEMA IF EXISTS {full_name(connection, schema)}")
        connection.execute("CHECKPOINT")
    return True
