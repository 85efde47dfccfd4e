"""DuckDB as the policy uses it: a parser and binder without data, in the process that asks.

It is loaded with the first SQL condition, because most policies have none, and it costs a process 30 MB and 0.1 s.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_lock = threading.Lock()
_opened: list[DuckDBPyConnection] = []


@contextmanager
def engine() -> Iterator[DuckDBPyConnection]:
    """The one locked-down connection of this process, for one caller at a time."""
    import duckdb

    with _lock:
        if not _opened:
            connection = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "100MB"})
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            _opened.append(connection)
            # or the binding complains about it at the end of the process
            atexit.register(_close)
        yield _opened[0]


def _close() -> None:
    with _lock:
        while _opened:
            _opened.pop().close()
