"""DuckDB as the helper processes of a governed build use it: locked down, and with errors that quote no data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import duckdb

from marimohub.snapshots.errors import HelperFailed, NoSpace
from marimohub.snapshots.types import literal, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@contextmanager
def opened(
    path: str, what: str, spec: dict[str, Any], *, read_only: bool, files: Iterable[str] = ()
) -> Iterator[DuckDBPyConnection]:
    """A locked-down connection to a database; DuckDB's errors with it, up to its closing, say `what` failed.

    Args:
        spec: a task's; its limits are of use here, see `lock_down`.
        files: paths besides the database that it may read and write.

    Raises:
        NoSpace, HelperFailed
    """
    try:
        with duckdb.connect(path, read_only=read_only) as connection:
            lock_down(connection, spec, files)
            yield connection
    except duckdb.Error as error:
        raise failure(error, what) from error


def lock_down(connection: DuckDBPyConnection, spec: dict[str, Any], files: Iterable[str]) -> None:
    """Leave a connection with the given limits and files, and with no way to change that.

    Args:
        spec: `threads`; `memory_limit`, as DuckDB takes it, such as "2GB"; `temporary`, a folder for what does not fit
            into memory.
    """
    connection.execute(f"SET threads = {int(spec['threads'])}")
    connection.execute(f"SET memory_limit = {literal(spec['memory_limit'])}")
    connection.execute(f"SET temp_directory = {literal(spec['temporary'])}")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute(f"SET allowed_paths = [{', '.join(map(literal, files))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def full_name(connection: DuckDBPyConnection, *names: str) -> str:
    """A name within the open database, as SQL; a schema may be called like a database, such as `temp`."""
    found = connection.execute("SELECT system.main.current_database()").fetchone()
    assert found is not None
    return ".".join(map(quoted, (found[0], *names)))


def failure(error: duckdb.Error, what: str) -> NoSpace | HelperFailed:
    """DuckDB's error as a sentence. Its own text is kept out: a failed cast quotes the value."""
    text = str(error)
    if "No space left" in text or "File too large" in text or "quota exceeded" in text:
        return NoSpace("There is no room to build a snapshot. Make room on the hub's disk and try again.")
    if isinstance(error, duckdb.OutOfMemoryException):
        return NoSpace(f"{what}: it needs more memory than MarimoHub.snapshot_memory_limit allows.")
    return HelperFailed(f"{what} ({type(error).__name__}). Ask an administrator to look at the policy and the log.")
