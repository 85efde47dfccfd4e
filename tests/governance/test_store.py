"""Policies and attributes in the database: history, two at once, audit, migration; on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jupyterhub import orm as jupyterhub_orm
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from marimohub import locks, people, subjects
from marimohub.database import Database, DatabaseOutdated, _alembic_config, migrate, sqlite_pragmas
from marimohub.governance import store
from marimohub.governance.store import NoRevision, PolicyChanged
from marimohub.orm import AuditEntry, PolicyRevision
from tests.databases import KINDS, new_url


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_url(request.param, tmp_path, request)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    database.prepare()
    yield database
    database.close()


@pytest.fixture
def hub_database(url: str, database: Database) -> Iterator[Database]:
    """With JupyterHub's tables beside ours, and two people."""
    options = {"pool_events": [(sqlite_pragmas, "connect")]} if url.startswith("sqlite") else {}
    session = jupyterhub_orm.new_session_factory(url, **options)()
    session.add_all([jupyterhub_orm.User(name=name) for name in ("ann", "bob")])
    session.commit()
    session.close()
    yield database


def put(database: Database, body: str, *, expected: int | None = None, author: str = "ann") -> store.StoredPolicy:
    with database.transaction() as session:
        return store.apply(session, 1, body, author=author, comment=f"why {body}", expected=expected, now=12.5)


def audit(database: Database) -> list[tuple[str, str, str]]:
    with database.transaction(write=False) as session:
        return [(e.actor, e.action, e.target) for e in session.query(AuditEntry).order_by(AuditEntry.id)]


def test_the_newest_revision_applies_and_all_are_kept(database: Database) -> None:
    with database.transaction(write=False) as session:
        assert store.current(session, 1) is None
        assert store.current_revision(session, 1) == 0
        assert store.history(session, 1) == []
    first, second = put(database, "one"), put(database, "two", expected=1, author="bob")
    assert first == store.StoredPolicy(1, "one", "ann", "why one", 12.5)
    with database.transaction(write=False) as session:
        assert store.current(session, 1) == second
        assert store.history(session, 1) == [second.entry, first.entry]
        assert store.get(session, 1, 1) == first
        for number in (0, -1, 3, 2**62):
            with pytest.raises(NoRevision):
                store.get(session, 1, number)
    assert audit(database) == [("ann", "apply_policy", "revision 1"), ("bob", "apply_policy", "revision 2")]


@pytest.mark.parametrize("expected", [1, 3])
def test_a_text_made_from_another_revision_is_refused_and_leaves_nothing(database: Database, expected: int) -> None:
    put(database, "one"), put(database, "two")
    with pytest.raises(PolicyChanged, match="revision 2") as refused:
        put(database, "three", expected=expected)
    assert refused.value.current == 2
    with database.transaction(write=False) as session:
        assert len(store.history(session, 1)) == 2
    assert len(audit(database)) == 2


def test_the_first_policy_can_be_asked_to_be_the_first(database: Database) -> None:
    with pytest.raises(PolicyChanged):
        put(database, "one", expected=1)
    put(database, "one", expected=0)
    with pytest.raises(PolicyChanged):
        put(database, "again", expected=0)


@pytest.mark.parametrize("expected", [0, None])
def test_of_many_who_apply_at_once_one_gets_each_revision(database: Database, expected: int | None) -> None:
    people_at_once, ready = 8, threading.Barrier(8)

    def one(number: int) -> int | None:
        ready.wait()
        try:
            return put(database, f"text {number}", expected=expected).revision
        except PolicyChanged:
            return None

    with ThreadPoolExecutor(people_at_once) as pool:
        got = sorted(revision for revision in pool.map(one, range(people_at_once)) if revision is not None)
    assert got == ([1] if expected == 0 else list(range(1, people_at_once + 1)))
    with database.transaction(write=False) as session:
        assert len(store.history(session, 1)) == len(got)
    assert len(audit(database)) == len(got)


def test_the_database_itself_refuses_a_second_text_for_a_revision(database: Database) -> None:
    put(database, "one")
    with pytest.raises(IntegrityError), database.transaction() as session:
        session.add(PolicyRevision(workspace_id=1, revision=1, text="", author="", comment="", created=0.0))


def test_each_workspace_has_a_policy_of_its_own(database: Database) -> None:
    put(database, "one")
    with database.transaction() as session:
        session.execute(text("INSERT INTO marimohub_workspaces (name, created) VALUES ('second', 0)"))
        second = session.execute(text("SELECT max(id) FROM marimohub_workspaces")).scalar_one()
        assert store.current(session, second) is None
        made = store.apply(session, second, "other", author="ann", comment="", expected=0, now=1.0)
        assert made.revision == 1
        session.execute(text("DELETE FROM marimohub_workspaces WHERE id = :id"), {"id": second})
    with database.transaction(write=False) as session:
        assert session.query(PolicyRevision).count() == 1


VALUES: dict[str, Any] = {"countries": ["DE", "FR"], "desk": 3, "cleared": True, "since": "2026-01-31", "big": 2**60}


def set_values(database: Database, user: str, values: dict[str, Any]) -> None:
    with database.transaction() as session:
        store.set_attributes(session, user, values, "ann", 5.0)


def values_of(database: Database, user: str) -> dict[str, Any]:
    with database.transaction(write=False) as session:
        return store.attributes_of(session, user)


def test_attributes_come_back_as_they_were_given(database: Database) -> None:
    assert values_of(database, "bob") == {}
    set_values(database, "bob", VALUES)
    assert values_of(database, "bob") == VALUES
    assert values_of(database, "Bob") == values_of(database, "ann") == {}
    set_values(database, "bob", {"desk": 4, "name'; DROP": "ü \u2028 \x00"})
    assert values_of(database, "bob") == {"desk": 4, "name'; DROP": "ü \u2028 \x00"}
    set_values(database, "bob", {})
    assert values_of(database, "bob") == {}


def test_a_change_of_attributes_is_audited_once_and_a_change_of_kind_is_one(database: Database) -> None:
    set_values(database, "bob", {"flag": 1})
    set_values(database, "bob", {"flag": 1})
    assert audit(database) == [("ann", "set_attributes", "bob")]
    set_values(database, "bob", {"flag": True})
    assert values_of(database, "bob")["flag"] is True
    assert len(audit(database)) == 2
    with database.transaction(write=False) as session:
        newest = session.query(AuditEntry).order_by(AuditEntry.id.desc()).first()
        assert newest is not None and newest.detail == '{"before": {"flag": 1}, "after": {"flag": true}}'


def test_two_changes_of_one_person_at_once_end_as_one_of_them(hub_database: Database) -> None:
    ready = threading.Barrier(6)

    def change(number: int) -> None:
        ready.wait()
        with hub_database.transaction() as session:
            subjects.set_attributes(session, "bob", {"desk": number, f"only_{number}": 1}, by="ann", now=1.0)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(change, range(6)))
    left = values_of(hub_database, "bob")
    assert left == {"desk": left["desk"], f"only_{left['desk']}": 1}


@pytest.mark.parametrize("name", ["zoe", "", "a\0b", "\ud800", "x" * 5000])
def test_nobody_gets_attributes_who_does_not_exist(hub_database: Database, name: str) -> None:
    with pytest.raises(subjects.NoPerson), hub_database.transaction() as session:
        subjects.set_attributes(session, name, {"desk": 1}, by="ann", now=1.0)
    with pytest.raises(subjects.NoPerson), hub_database.transaction() as session:
        subjects.find_person(session, name)


def test_a_deleted_persons_attributes_are_gone_and_others_stay(database: Database) -> None:
    set_values(database, "bob", VALUES)
    set_values(database, "carol", VALUES)
    with database.transaction() as session:
        people.forget(session, "bob", now=9.0)
    assert values_of(database, "bob") == {}
    assert values_of(database, "carol") == VALUES
    with database.transaction() as session:
        assert store.forget_all_but(session, {"ann", "bob"}) == ["carol"]
    assert values_of(database, "carol") == {}


def lock_of(session: Session) -> str | None:
    return locks.get(session, 1, "report", now=1.0).holder


def test_upgrade_from_the_first_schema_keeps_what_was_there_and_goes_back(url: str) -> None:
    from alembic import command

    database = Database(url)
    migrate(database.engine, "0001")
    with database.transaction() as session:
        locks.acquire(session, 1, "report", "ann", now=0.0, ttl=900.0)
    with pytest.raises(DatabaseOutdated, match="upgrade-db"):
        database.prepare()
    database.prepare(upgrade=True)
    put(database, "one")
    set_values(database, "bob", VALUES)
    with database.transaction(write=False) as session:
        assert lock_of(session) == "ann"
    config = _alembic_config()
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    assert database.revision() == "0001"
    assert not {"marimohub_policies", "marimohub_user_attributes"} & set(inspect(database.engine).get_table_names())
    with database.transaction(write=False) as session:
        assert lock_of(session) == "ann"
    database.close()
