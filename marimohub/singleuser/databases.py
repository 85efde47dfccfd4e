"""DuckDB within the limits of the server: it spills to the person's temp folder instead of being killed.

On its own, DuckDB takes 80 % of the machine's memory as its limit, and spills to a folder beside the database or in the
working directory.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import tempfile
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "MARIMOHUB_MEMORY_LIMIT"  # bytes that the whole server may use
SHARE = 0.6  # of it for a database: the notebook's own objects need their part

_count = itertools.count(1)


def memory_limit() -> int | None:
    """Bytes for one database, None if the server has no limit."""
    text = os.environ.get(MEMORY_LIMIT, "")
    return int(int(text) * SHARE) if text.isascii() and text.isdigit() and int(text) else None


def settle(connection: DuckDBPyConnection, chosen: frozenset[str] = frozenset()) -> None:
    """Set the limit and the temp folder of a database that was just opened, but for what is in `chosen`.

    Nothing is set a second time, nor where the database's configuration is locked.
    """
    import duckdb

    # two databases must not share a folder: their files would have the same names
    ours = f"{tempfile.gettempdir()}/duckdb-{os.getpid()}-"
    with contextlib.suppress(duckdb.Error):
        found = connection.execute("SELECT current_setting('temp_directory')").fetchone()
        if found is not None and str(found[0]).startswith(ours):
            return
        limit = memory_limit()
        if limit is not None and not chosen & {"memory_limit", "max_memory"}:
            connection.execute(f"SET GLOBAL memory_limit = '{limit}B'")
        if "temp_directory" not in chosen:
            folder = f"{ours}{next(_count)}".replace("'", "''")
            connection.execute(f"SET GLOBAL temp_directory = '{folder}'")


def settle_all(duckdb: ModuleType) -> None:
    """Settle what is opened through this module from now on, and the connection that its functions use."""
    connect = duckdb.connect

    @functools.wraps(connect)
    def settled(*args: Any, **named: Any) -> Any:
        connection = connect(*args, **named)
        config = named.get("config") or (args[2] if len(args) > 2 else None)
        settle(connection, frozenset(config or ()))
        return connection

    duckdb.connect = settled  # type: ignore[attr-defined]
    with contextlib.suppress(duckdb.Error):
        duckdb.set_default_connection(settled(":memory:"))
