"""One snapshot for many: shared, reused, linked."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from marimohub.snapshots import source
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.errors import NoSpace
from tests.snapshots.conftest import builds, commit, rows

pytestmark = pytest.mark.unit


async def test_fifty_who_open_at_once_cause_one_copy(cache, helpers):
    found = await asyncio.gather(*(cache.ensure() for _ in range(50)))
    assert len(helpers) == 1
    assert len({snapshot.path for snapshot in found}) == 1
    assert rows(found[0].path, "SELECT count(*) FROM t") == [(1000,)]
    assert builds(cache) == []


async def test_an_unchanged_warehouse_needs_no_new_copy_also_after_a_restart(cache, helpers):
    first = await cache.ensure()
    again = await cache.ensure()
    restarted = await SnapshotCache(cache.root, cache.warehouse).ensure()
    assert (first.reused, again.reused, restarted.reused) == (False, True, True)
    assert first.path == again.path == restarted.path
    assert first.created == again.created == restarted.created
    assert len(helpers) == 1


async def test_a_commit_makes_the_next_snapshot_new_and_leaves_the_old_one_as_it_was(cache, helpers):
    first = await cache.ensure()
    await asyncio.to_thread(commit, cache.warehouse, "INSERT INTO t VALUES (1)")
    second = await cache.ensure()
    assert second.key != first.key
    assert rows(first.path, "SELECT count(*) FROM t") == [(1000,)]
    assert rows(second.path, "SELECT count(*) FROM t") == [(1001,)]
    assert len(helpers) == 2


async def test_the_key_is_that_of_what_was_copied_when_a_commit_comes_between(cache, monkeypatch):
    real = cache._run_helper

    async def late(destination):
        await asyncio.to_thread(commit, cache.warehouse, "INSERT INTO t VALUES (1)")
        return await real(destination)

    before = source.version(cache.warehouse)
    monkeypatch.setattr(cache, "_run_helper", late)
    snapshot = await cache.ensure()
    assert snapshot.key == source.version(cache.warehouse) != before
    assert rows(snapshot.path, "SELECT count(*) FROM t") == [(1001,)]


async def test_a_half_stored_snapshot_is_not_used(cache, helpers):
    first = await cache.ensure()
    first.path.chmod(0o640)
    with open(first.path, "r+b") as file:
        file.truncate(20_000)
    again = await cache.ensure()
    assert not again.reused
    assert rows(again.path, "SELECT count(*) FROM t") == [(1000,)]
    again.path.with_suffix(".json").unlink()
    assert not (await SnapshotCache(cache.root, cache.warehouse).ensure()).reused


async def test_a_failed_build_fails_for_all_who_wait_and_not_for_the_next(cache, monkeypatch):
    real = cache._run_helper

    async def fail(_destination):
        await asyncio.sleep(0.05)
        raise NoSpace("There is no room.")

    monkeypatch.setattr(cache, "_run_helper", fail)
    found = await asyncio.gather(*(cache.ensure() for _ in range(5)), return_exceptions=True)
    assert [type(one) for one in found] == [NoSpace] * 5
    monkeypatch.setattr(cache, "_run_helper", real)
    assert (await cache.ensure()).path.exists()


async def test_linking_takes_no_room_and_keeps_what_a_reader_has_open(cache, tmp_path):
    first = await cache.ensure()
    folder = tmp_path / "users" / "ann" / "snapshot"
    path = cache.link(first, folder)
    assert path == folder / "warehouse.duckdb"
    assert path.stat().st_ino == first.path.stat().st_ino
    assert path.stat().st_mode & 0o777 == 0o440
    assert folder.stat().st_mode & 0o777 == 0o700
    metadata = json.loads((folder / "warehouse.json").read_text())
    assert metadata["version"] == first.key
    assert metadata["created"].endswith("Z")
    assert cache.link(first, folder) == path
    with open(path, "rb") as reader:
        await asyncio.to_thread(commit, cache.warehouse, "INSERT INTO t VALUES (1)")
        cache.link(await cache.ensure(), folder)
        assert os.fstat(reader.fileno()).st_ino == first.path.stat().st_ino
    assert rows(path, "SELECT count(*) FROM t") == [(1001,)]
    assert sorted(os.listdir(folder)) == ["warehouse.duckdb", "warehouse.json"]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
async def test_a_folder_on_another_file_system_gets_a_copy(cache, tmp_path):
    snapshot = await cache.ensure()
    folder = Path("/dev/shm") / f"marimohub-test-{os.getpid()}"
    try:
        path = cache.link(snapshot, folder)
        assert path.stat().st_dev != snapshot.path.stat().st_dev
        assert path.read_bytes() == snapshot.path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o440
    finally:
        for entry in folder.iterdir():
            entry.unlink()
        folder.rmdir()
