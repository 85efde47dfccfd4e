"""The connection to MarimoHub's own tables: short transactions in worker threads, never in the hub's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from marimohub.files import NoSpace

P = ParamSpec("P")
T = TypeVar("T")

SCHEMA_REVISION = "0002"
VERSION_TABLE = "marimohub_alembic_version"
BUSY_TIMEOUT_MS = 30_000
_MIGRATIONS = Path(__file__).parent / "migrations"


class DatabaseNewer(Exception):
    """The database was written by a newer MarimoHub."""

    def __init__(self, revision: str) -> None:
        super().__init__(
            f"The database is of a newer MarimoHub (schema {revision}; this version knows {SCHEMA_REVISION}). "
            "Install that version again, or point MarimoHub.data_dir to another folder."
        )


class DatabaseOutdated(Exception):
    """The database needs a migration that was not asked for."""

    def __init__(self, revision: str) -> None:
        super().__init__(
            f"The database has schema {revision}, this version needs {SCHEMA_REVISION}. "
            "Make a backup, then run: marimohub upgrade-db"
        )


def sqlite_pragmas(connection: Any, _record: Any) -> None:
    """Set what SQLite needs under several connections; for `create_engine(pool_events=…)`."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


class Database:
    """Runs functions of the form `f(session, …)` in one transaction each.

    Args:
        url: an SQLAlchemy URL of a SQLite file or of PostgreSQL.

    On SQLite one thread does all writing and takes the write lock at BEGIN: two writers of one process never wait in
    SQLite's polling busy handler, and a transaction that has read can never fail to become a writer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = url.startswith("sqlite")
        self.engine = _engine(url, self.sqlite)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._writers = ThreadPoolExecutor(1 if self.sqlite else 8, "marimohub-db-write")
        self._readers = ThreadPoolExecutor(2 if self.sqlite else 8, "marimohub-db-read")

    @contextmanager
    def transaction(self, *, write: bool = True, durable: bool = True) -> Iterator[Session]:
        """One transaction in this thread: committed at the end, rolled back on an exception.

        Args:
            durable: wait until it would outlive a power failure. Without that, only what happened in the last moment
                before one may be lost, never a part of a transaction; a killed hub loses nothing either way.

        Raises:
            NoSpace: the database's disk is full; nothing was changed.
        """
        with self._sessions() as session:
            try:
                connection = session.connection()
                if self.sqlite:
                    if write:
                        # https://www.sqlite.org/pragma.html#pragma_synchronous: in WAL mode NORMAL keeps all but the
                        # last commits; the setting is the connection's, which serves others afterwards
                        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
                elif not durable:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                yield session
                session.commit()
            except OperationalError as error:
                session.rollback()
                if _is_full(error):
                    raise NoSpace from error
                raise
            except BaseException:
                session.rollback()
                raise

    async def write(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(session, …)` in one write transaction in a worker thread."""

        def work() -> T:
            with self.transaction() as session:
                return function(session, *args, **kwargs)

        return await self.run(work)

    async def write_soon(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `write`, for what may be lost in a power failure: it does not wait for the disk."""

        def work() -> T:
            with self.transaction(durable=False) as session:
                return function(session, *args, **kwargs)

        return await self.run(work)

    async def read(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function(session, …)` in one read transaction in a worker thread."""

        def work() -> T:
            with self.transaction(write=False) as session:
                return function(session, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that manages its own transactions in a writer thread."""
        call = partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._writers, call)

    def close(self) -> None:
        """Wait for running work and close all connections."""
        self._writers.shutdown()
        self._readers.shutdown()
        self.engine.dispose()

    def revision(self) -> str | None:
        """The schema revision that the database has, None if it holds none of our tables."""
        if not inspect(self.engine).has_table(VERSION_TABLE):
            return None
        with self.engine.connect() as connection:
            row = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).first()  # noqa: S608
        return row[0] if row else None

    def prepare(self, *, upgrade: bool = False) -> None:
        """Bring an empty database to the current schema; check any other.

        Args:
            upgrade: migrate an older database, too.

        Raises:
            DatabaseNewer: written by a later version.
            DatabaseOutdated: older, and `upgrade` is false.
        """
        revision = self.revision()
        if revision == SCHEMA_REVISION:
            return
        if revision is not None and revision not in _known_revisions():
            raise DatabaseNewer(revision)
        if revision is not None and not upgrade:
            raise DatabaseOutdated(revision)
        migrate(self.engine)


def migrate(engine: Engine, revision: str = "head") -> None:
    """Run the Alembic migrations up to `revision`, or down to nothing with "base"."""
    # imported here: Alembic costs a start-up that needs no migration 0.1 s
    from alembic import command

    config = _alembic_config()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        if revision == "base":
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _known_revisions() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}


def _is_full(error: OperationalError) -> bool:
    # https://www.postgresql.org/docs/current/errcodes-appendix.html: 53100 disk_full; SQLite: SQLITE_FULL
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "sqlite_errorname", None)
    return code in ("53100", "SQLITE_FULL")


def _engine(url: str, sqlite: bool) -> Engine:
    if not sqlite:
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"check_same_thread": False}, pool_events=[(sqlite_pragmas, "connect")])

    # https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl:
    # the driver's own BEGIN comes too late for IMMEDIATE
    @event.listens_for(engine, "connect")
    def _no_driver_transactions(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    return engine
