"""Databases of a test's own: a fresh file, or a fresh database in the test session's PostgreSQL server."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
_numbers = itertools.count()


def new_postgres(server: str) -> str:
    """URL of a new, empty database in the PostgreSQL server at `server`."""
    name = f"hub_{os.getpid()}_{next(_numbers)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def new_url(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """URL of a new, empty database of a kind in KINDS; PostgreSQL is started only when it is asked for."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'hub.sqlite'}"
    return new_postgres(request.getfixturevalue("postgres"))
