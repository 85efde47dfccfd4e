"""The database layer: what is set on connect, migrations both ways, refusals, and writers side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from jupyterhub import orm as jupyterhub_orm
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from marimohub import database as database_module
from marimohub import locks
from marimohub.database import (
    BUSY_TIMEOUT_MS,
    SCHEMA_REVISION,
    VERSION_TABLE,
    Database,
    DatabaseNewer,
    DatabaseOutdated,
    migrate,
    sqlite_pragmas,
)
from marimohub.orm import Base, Notice
from tests.databases import KINDS, new_url

TTL = 900.0


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_url(request.param, tmp_path, request)


@pytest.fixture
def empty(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()


def set_revision(database: Database, revision: str) -> None:
    with database.transaction() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :revision"), {"revision": revision})


def own_tables(database: Database) -> set[str]:
    return {name for name in inspect(database.engine).get_table_names() if name.startswith("marimohub_")}


@pytest.mark.unit
def test_every_connection_has_wal_a_busy_timeout_and_foreign_keys(database: Database) -> None:
    connections = [database.engine.connect() for _ in range(3)]
    for connection in connections:
        pragmas = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "busy_timeout")]
        assert pragmas == ["wal", BUSY_TIMEOUT_MS]
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
        # 2 is FULL: an accepted save outlives a power failure
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        connection.close()
    assert BUSY_TIMEOUT_MS >= 5000


def test_a_text_that_no_row_may_name_is_refused_by_the_database(empty: Database) -> None:
    empty.prepare()
    with pytest.raises(IntegrityError), empty.transaction() as session:
        session.execute(
            text(
                "INSERT INTO marimohub_versions (notebook_id, hash, kind, created) "
                "VALUES (4711, 'no such text', 'save', 0)"
            )
        )


def test_empty_database_gets_the_schema_and_one_workspace(empty: Database) -> None:
    assert empty.revision() is None
    empty.prepare()
    assert empty.revision() == SCHEMA_REVISION
    with empty.transaction(write=False) as session:
        assert session.execute(text("SELECT id, name FROM marimohub_workspaces")).all() == [(1, "default")]
    # a second start changes nothing
    empty.prepare()


def test_migrations_make_exactly_the_tables_that_the_code_uses(empty: Database) -> None:
    empty.prepare()
    assert own_tables(empty) == {*Base.metadata.tables, VERSION_TABLE}
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_object": lambda _o, name, kind, *_: kind != "table" or name in Base.metadata.tables},
        )
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_go_down_to_nothing_and_up_again(empty: Database) -> None:
    empty.prepare()
    migrate(empty.engine, "base")
    assert own_tables(empty) <= {VERSION_TABLE}
    assert empty.revision() is None
    empty.prepare()
    assert empty.revision() == SCHEMA_REVISION
    with empty.transaction() as session:
        assert locks.acquire(session, 1, "report", "ann", now=0.0, ttl=TTL).fence == 1


def test_each_single_migration_goes_up_and_down_again(empty: Database) -> None:
    from alembic import command

    revisions = sorted(database_module._known_revisions())
    assert revisions[-1] == SCHEMA_REVISION
    config = database_module._alembic_config()
    with empty.engine.connect() as connection:
        config.attributes["connection"] = connection
        for revision in revisions:
            command.upgrade(config, revision)
            command.downgrade(config, "-1")
            command.upgrade(config, revision)
    assert empty.revision() == SCHEMA_REVISION


def test_new_workspace_gets_a_new_id_after_the_migration_named_its_own(empty: Database) -> None:
    empty.prepare()
    with empty.transaction() as session:
        session.execute(text("INSERT INTO marimohub_workspaces (name, created) VALUES ('second', 0)"))
        assert session.execute(text("SELECT max(id) FROM marimohub_workspaces")).scalar() == 2


def test_database_of_a_newer_version_is_refused_and_left_alone(empty: Database) -> None:
    empty.prepare()
    set_revision(empty, "9999")
    for upgrade in (False, True):
        with pytest.raises(DatabaseNewer, match=r"newer MarimoHub \(schema 9999"):
            empty.prepare(upgrade=upgrade)
    assert empty.revision() == "9999"


def test_older_database_is_refused_without_upgrade_and_migrated_with_it(empty: Database) -> None:
    revisions = sorted(database_module._known_revisions())
    migrate(empty.engine, revisions[-2])
    before = empty.revision()
    with pytest.raises(DatabaseOutdated, match="marimohub upgrade-db"):
        empty.prepare()
    assert empty.revision() == before
    empty.prepare(upgrade=True)
    assert empty.revision() == revisions[-1]


def test_our_tables_and_jupyterhubs_share_one_database(url: str) -> None:
    options = {"pool_events": [(sqlite_pragmas, "connect")]} if url.startswith("sqlite") else {}
    jupyterhub = jupyterhub_orm.new_session_factory(url, **options)()
    own = Database(url)
    own.prepare()
    migrate(own.engine, "base")
    own.prepare()
    assert {"users", "api_tokens"} <= set(inspect(own.engine).get_table_names())
    assert jupyterhub.query(jupyterhub_orm.User).count() == 0
    own.close()
    jupyterhub.close()


def add_notices(database: Database, user: str, count: int, failures: list[Exception]) -> None:
    try:
        for number in range(count):
            with database.transaction() as session:
                session.add(Notice(user_name=user, kind="test", text=str(number), created=0.0))
    except Exception as error:
        failures.append(error)


def test_writers_wait_for_jupyterhubs_session_instead_of_failing(url: str) -> None:
    """JupyterHub's session holds a write for a second while two threads of ours write: nobody is told "locked"."""
    options = {"pool_events": [(sqlite_pragmas, "connect")]} if url.startswith("sqlite") else {}
    jupyterhub = jupyterhub_orm.new_session_factory(url, **options)()
    own = Database(url)
    own.prepare()
    failures: list[Exception] = []
    threads = [threading.Thread(target=add_notices, args=(own, f"user{n}", 20, failures)) for n in range(2)]
    jupyterhub.add(jupyterhub_orm.User(name="ann"))
    jupyterhub.flush()
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    jupyterhub.commit()
    # and the other way round: it reads and writes while ours are writing
    for number in range(20):
        user = jupyterhub.query(jupyterhub_orm.User).filter_by(name="ann").one()
        user.admin = number % 2 == 0
        jupyterhub.commit()
    for thread in threads:
        thread.join()
    assert failures == []
    with own.transaction(write=False) as session:
        assert session.query(Notice).count() == 40
    own.close()
    jupyterhub.close()


@pytest.mark.unit
def test_lock_taken_in_one_process_is_seen_by_another_connection_at_once(database: Database) -> None:
    with database.transaction() as session:
        locks.acquire(session, 1, "report", "ann", now=0.0, ttl=TTL)
    other = create_engine(database.url)
    with other.connect() as connection:
        assert connection.execute(text("SELECT holder FROM marimohub_locks")).scalar() == "ann"
    other.dispose()


@pytest.mark.unit
def test_failed_transaction_leaves_nothing_behind(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction() as session:
        session.add(Notice(user_name="ann", kind="test", text="", created=0.0))
        session.flush()
        raise RuntimeError
    with database.transaction() as session:
        assert session.query(Notice).count() == 0


@pytest.mark.unit
async def test_writes_and_reads_run_outside_the_event_loop(database: Database) -> None:
    def where(_session: object) -> str:
        return threading.current_thread().name

    assert (await database.write(where)).startswith("marimohub-db-write")
    assert (await database.read(where)).startswith("marimohub-db-read")
