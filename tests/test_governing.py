"""What a person sees, from the database: fresh at every call, remembered where nothing changed."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from marimohub import governing
from marimohub.database import Database
from marimohub.governance import store
from marimohub.governance.errors import PolicyInvalid
from marimohub.governance.store import NoRevision, StoredPolicy
from marimohub.governance.subject import Subject
from marimohub.governing import Governor, PolicyRefused, PolicyUnusable
from marimohub.snapshots.schema import Column, Table, WarehouseSchema

pytestmark = pytest.mark.unit

SCHEMA = WarehouseSchema(tables=(Table("main", "notes", (Column("text", "VARCHAR"), Column("desk", "INTEGER")), 7),))
POLICY = """
version: 1
levels: [public]
attributes: {desk: {type: number}}
tables: {notes: {level: public, columns: {"*": {}}}}
grants: [{name: all, to: {everyone: true}, tables: [notes]}]
filters: [{name: own, tables: [notes], where: {column: desk, equals: {user: desk}}}]
"""
ED = Subject("ed", "editor")


@pytest.fixture
def governor(database: Database) -> Governor:
    return Governor(database, lambda: 1.0)


def put(database: Database, text: str) -> StoredPolicy:
    with database.transaction() as session:
        return store.apply(session, 1, text, author="ann", comment="", expected=None, now=0.0)


def set_desk(database: Database, desk: object) -> None:
    with database.transaction() as session:
        store.set_attributes(session, "ed", {"desk": desk}, "ann", 0.0)


async def test_without_a_policy_there_is_nothing(governor: Governor) -> None:
    assert await governor.policy(1) == (None, None)
    access = await governor.access(1, ED, SCHEMA)
    assert access.tables == () and access.plan().tables == ()
    assert {omission.reason for omission in access.omitted} == {"no policy has been applied yet"}


async def test_what_another_process_applies_is_seen_at_the_next_call(governor: Governor, database: Database) -> None:
    other = Database(database.url)
    put(other, POLICY)
    stored, policy = await governor.policy(1)
    assert stored is not None and policy is not None and stored.revision == 1
    assert len((await governor.access(1, ED, SCHEMA)).tables) == 1
    put(other, POLICY.replace("everyone: true", "roles: [admin]"))
    assert (await governor.access(1, ED, SCHEMA)).tables == ()
    assert len((await governor.access(1, ED, SCHEMA, revision=1)).tables) == 1
    assert (await governor.access(1, ED, SCHEMA, revision=0)).tables == ()
    with pytest.raises(NoRevision):
        await governor.access(1, ED, SCHEMA, revision=3)
    other.close()


async def test_attributes_count_as_they_are_now_and_only_as_declared(governor: Governor, database: Database) -> None:
    put(database, POLICY)
    digests = set()
    for desk, none in ((3, False), (4, False), ("3", True), (True, True)):
        set_desk(database, desk)
        # what a caller brings along does not count
        access = await governor.access(1, replace(ED, attributes={"desk": 9}), SCHEMA)
        assert (access.tables[0].no_rows is not None) is none
        digests.add(access.digest)
    assert len(digests) == 3


async def test_nothing_is_resolved_twice_and_never_in_the_event_loop(
    governor: Governor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    real_parse, real_resolve = governing.parse, governing.resolve
    monkeypatch.setattr(governing, "parse", lambda *a: threads.append(threading.current_thread()) or real_parse(*a))
    monkeypatch.setattr(governing, "resolve", lambda *a: threads.append(threading.current_thread()) or real_resolve(*a))
    put(database, POLICY)
    first = await governor.access(1, ED, SCHEMA)
    more_rows = replace(SCHEMA, tables=(replace(SCHEMA.tables[0], rows=8),))
    assert await governor.access(1, ED, more_rows) is first
    assert len(threads) == 2
    assert {thread.name.rpartition("_")[0] for thread in threads} == {"marimohub-policy"}
    for changed in (
        (replace(ED, role="viewer"), SCHEMA),
        (replace(ED, groups=frozenset({"x"})), SCHEMA),
        (replace(ED, user="vic"), SCHEMA),
    ):
        await governor.access(1, *changed)
    assert len(threads) == 5


async def test_a_policy_that_no_longer_fits_the_warehouse_shows_nothing_to_anybody(
    governor: Governor, database: Database
) -> None:
    put(database, POLICY)
    with pytest.raises(PolicyUnusable, match="administrator") as refused:
        await governor.access(1, ED, WarehouseSchema())
    assert isinstance(refused.value, PolicyInvalid) and refused.value.problems
    put(database, "version: 7")
    with pytest.raises(PolicyUnusable):
        await governor.policy(1)


async def test_only_what_fits_is_applied(governor: Governor) -> None:
    with pytest.raises(PolicyRefused) as refused:
        await governor.apply(1, POLICY, WarehouseSchema(), author="ann", comment="", expected=None)
    assert refused.value.problems
    assert await governor.policy(1) == (None, None)
    stored, problems = await governor.apply(1, POLICY, SCHEMA, author="ann", comment="why", expected=0)
    assert (stored.revision, stored.comment, stored.created) == (1, "why", 1.0)
    assert not [problem for problem in problems if problem.severity == "error"]


async def test_memory_does_not_grow_with_people_and_revisions(governor: Governor, database: Database) -> None:
    put(database, POLICY)
    for number in range(governing.KEPT_ACCESSES + 20):
        await governor.access(1, Subject(f"user{number}", "editor"), SCHEMA)
    assert len(governor._accesses) == governing.KEPT_ACCESSES
    for _ in range(governing.KEPT_POLICIES + 5):
        put(database, POLICY)
        await governor.policy(1)
    assert len(governor._policies) == governing.KEPT_POLICIES
