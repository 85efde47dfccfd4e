"""People with user ids of their own: each reads their own snapshot, one file serves all, and nobody else gets there."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from marimohub.database import Database
from marimohub.governance.subject import Subject
from marimohub.governing import Governor
from marimohub.personal import PersonalSnapshots, Place
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.errors import SnapshotError
from marimohub.spawners.identities import Identities
from marimohub.spawners.job import Identity
from tests.other_users import as_person, open_folder, root_only
from tests.snapshots.conftest import governed, next_one

pytestmark = root_only
RANGE = (83000, 83040)
GROUP = 83000


@pytest.fixture
def place() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture
def people(place: Path) -> Identities:
    return Identities(place / "users", RANGE)


@pytest.fixture
def shared(place: Path, warehouse: Path) -> SnapshotCache:
    return SnapshotCache(place / "snapshots", warehouse, deadline=20, group=GROUP)


def prepared(people: Identities, name: str) -> tuple[Identity, Path]:
    """A person's identity and snapshot folder."""
    identity = people.of(people.users_dir / name)
    assert identity is not None
    return identity, people.users_dir / name / "snapshot"


def look(path: Path) -> tuple[int, int, str]:
    status = path.stat()
    return status.st_uid, status.st_gid, oct(stat.S_IMODE(status.st_mode))


def reads(who: Identity, folder: Path) -> bool:
    """Whether a person can read the snapshot in their folder. Without DuckDB, whose threads do not outlive a fork."""
    stays = folder / "warehouse.duckdb"
    return bool(as_person(who, lambda: zlib.crc32(stays.read_bytes())) == zlib.crc32(stays.read_bytes()))


async def test_one_file_is_read_by_each_of_many_in_their_own_folder(people, shared, monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    (ann, hers), (bob, his) = prepared(people, "ann"), prepared(people, "bob")
    snapshot = await governed(shared)
    paths = [shared.link(snapshot, folder) for folder in (hers, his)]
    assert {path.stat().st_ino for path in paths} == {snapshot.path.stat().st_ino}
    assert look(paths[0]) == (0, GROUP, "0o440")
    assert look(paths[0].parent) == look(hers) == (0, ann.uid, "0o750")
    assert look(hers / "warehouse.json") == (0, ann.uid, "0o640")
    for who, folder in ((ann, hers), (bob, his)):
        assert reads(who, folder)
        assert as_person(who, lambda folder=folder: json.loads((folder / "warehouse.json").read_text())["governed"])
    denied = (
        lambda: os.open(his / "warehouse.duckdb", os.O_RDONLY),
        lambda: os.open(paths[1], os.O_RDONLY),
        lambda: os.listdir(his),
        lambda: os.open(shared.root, os.O_RDONLY),
        lambda: os.open(snapshot.path, os.O_RDONLY),
        lambda: os.open(paths[0], os.O_RDWR),
        lambda: paths[0].chmod(0o666),
        lambda: paths[0].unlink(),
        lambda: paths[0].rename(hers.parent / "home" / "kept"),
        lambda: os.utime(paths[0]),
        lambda: (hers / "warehouse.json").write_text("{}"),
        lambda: (hers / "new").touch(),
        lambda: (paths[0].parent / "warehouse.duckdb.wal").touch(),
    )
    for act in denied:
        with pytest.raises(PermissionError):
            as_person(ann, act)


async def test_duckdb_opens_it_as_that_user(people, shared):
    ann, hers = prepared(people, "ann")
    shared.link(await governed(shared), hers)
    open_it = f"duckdb.connect({str(hers / 'warehouse.duckdb')!r}, read_only=True)"
    code = f"import duckdb; print({open_it}.sql('FROM t').count('i'))"
    whom = [f"--reuid={ann.uid}", f"--regid={ann.gid}", f"--groups={GROUP}"]
    done = subprocess.run(["setpriv", *whom, sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert "1000" in done.stdout, done.stderr


async def test_a_person_without_the_group_does_not_read_it(people, shared):
    ann, hers = prepared(people, "ann")
    shared.link(await governed(shared), hers)
    with pytest.raises(PermissionError):
        as_person(Identity(ann.uid, ann.gid), lambda: os.open(hers / "warehouse.duckdb", os.O_RDONLY))


async def test_a_copy_on_another_file_system_is_readable_too(people, shared):
    with open_folder() as other:
        elsewhere = Path(f"/dev/shm/{other.name}")
        elsewhere.mkdir(mode=0o711)
        try:
            if elsewhere.stat().st_dev == shared.root.stat().st_dev:
                pytest.skip("needs a second file system")
            ann, hers = prepared(Identities(elsewhere / "users", RANGE), "ann")
            path = shared.link(await governed(shared), hers)
            assert path.stat().st_dev != shared.root.stat().st_dev
            assert look(path) == (0, GROUP, "0o440")
            assert reads(ann, hers)
        finally:
            shutil.rmtree(elsewhere)


@pytest.mark.parametrize("former", ["root's", "without a group", "another group"])
async def test_what_was_linked_before_people_had_ids_is_put_into_reach(people, shared, former):
    folder = people.users_dir / "ann" / "snapshot"
    group = {"without a group": None, "another group": 83040}.get(former)
    before = SnapshotCache(shared.root, shared.warehouse, deadline=20, group=group)
    if former != "root's":
        prepared(people, "ann")
    snapshot = await governed(before)
    before.link(snapshot, folder)
    assert not shared.in_reach(folder)
    ann, folder = prepared(people, "ann")
    assert not shared.in_reach(folder)
    shared.link(snapshot, folder)
    assert shared.in_reach(folder)
    assert reads(ann, folder)
    shared.link(await next_one(shared), folder)
    assert shared.in_reach(folder)
    assert reads(ann, folder)
    (folder / "warehouse.json").chmod(0o600)
    assert not shared.in_reach(folder)
    assert before.in_reach(folder) is (group is None), "without ids there is nobody who could not reach it"


@pytest.mark.parametrize("target", ["warehouse.duckdb", "../home/warehouse.duckdb", "/etc/passwd", "0" * 16 + "/../x"])
async def test_a_name_that_leads_elsewhere_is_not_in_reach(people, shared, target):
    _, folder = prepared(people, "ann")
    shared.link(await governed(shared), folder)
    (folder / "warehouse.duckdb").unlink()
    (folder / "warehouse.duckdb").symlink_to(target)
    assert not shared.in_reach(folder)


# the folder is made theirs first, whatever asks for a snapshot


def personal(database: Database, cache: SnapshotCache, prepare) -> PersonalSnapshots:
    return PersonalSnapshots(database, cache, Governor(database, time.time, enabled=False), prepare=prepare)


async def test_a_newcomers_first_snapshot_is_theirs_to_read(database, people, shared):
    folder = people.users_dir / "ann" / "snapshot"
    given = personal(database, shared, lambda folder: people.of(folder.parent))
    place = Place(1, Subject("ann", "editor"), folder)
    await given.give(place, stop=None)
    ann, _ = prepared(people, "ann")
    assert reads(ann, folder)


async def test_before_a_server_starts_a_snapshot_out_of_reach_is_linked_anew(database, people, shared):
    folder = people.users_dir / "ann" / "snapshot"
    place = Place(1, Subject("ann", "editor"), folder)
    former = SnapshotCache(shared.root, shared.warehouse, deadline=20)
    await personal(database, former, lambda folder: None).give(place, stop=None)
    assert not shared.in_reach(folder)
    given = personal(database, shared, lambda folder: people.of(folder.parent))
    await given.ensure(place)
    ann, _ = prepared(people, "ann")
    assert reads(ann, folder)
    before = shared.linked(folder)
    await given.ensure(place)
    assert shared.linked(folder) == before, "nothing to do"


async def test_who_has_no_usable_folder_gets_no_snapshot(database, people, shared):
    _, folder = prepared(people, "ann")
    place = Place(1, Subject("ann", "editor"), folder)
    await personal(database, shared, lambda folder: None).give(place, stop=None)

    def broken(folder: Path) -> None:
        raise SnapshotError("the sentence")

    for act in (
        personal(database, shared, broken).ensure,
        lambda p: personal(database, shared, broken).give(p, stop=None),
    ):
        with pytest.raises(SnapshotError, match="the sentence"):
            await act(place)
    assert os.listdir(folder) == []
