"""The cache when things are killed, cancelled, replaced meanwhile, or written to by somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from marimohub.snapshots import cache as cache_module
from marimohub.snapshots import source
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.errors import HelperFailed, SnapshotError
from tests.snapshots.conftest import builds, commit, hold, let_go, rows


async def test_under_a_writer_snapshots_are_made_and_the_event_loop_stays_free(tmp_path, start_writer):
    live = tmp_path / "live.duckdb"
    writer = start_writer(live, "busy")
    cache = SnapshotCache(tmp_path / "cache", live, deadline=20)
    delays: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            delays.append(time.perf_counter() - before - 0.005)

    ticking = asyncio.create_task(tick())
    for _ in range(8):
        committed = writer.committed()
        snapshot = await cache.ensure()
        assert (await asyncio.to_thread(rows, snapshot.path, "SELECT n FROM counter"))[0][0] >= committed
    ticking.cancel()
    assert sorted(delays)[len(delays) * 9 // 10] < 0.1
    assert len(list(cache.root.glob("*.duckdb"))) <= 8


async def test_killing_the_helper_gives_a_sentence_and_leaves_nothing_that_could_be_linked(cache, helpers):
    holder = hold(cache.warehouse)
    try:
        building = asyncio.create_task(cache.ensure())
        while not helpers:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        helpers[0].kill()
        with pytest.raises(HelperFailed, match=r"was interrupted \(signal 9\)"):
            await building
        assert os.listdir(cache.root) == []
    finally:
        let_go(cache.warehouse, holder)
    assert (await cache.ensure()).path.exists()


async def test_giving_up_kills_the_helper_and_leaves_nothing(cache, helpers):
    holder = hold(cache.warehouse)
    try:
        waiting = [asyncio.create_task(cache.ensure()) for _ in range(3)]
        while not helpers:
            await asyncio.sleep(0.02)
        for task in waiting[:2]:
            task.cancel()
        await asyncio.sleep(0.1)
        assert helpers[0].returncode is None, "one caller still waits"
        waiting[2].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert helpers[0].returncode is not None
        assert os.listdir(cache.root) == []
    finally:
        let_go(cache.warehouse, holder)
    assert (await cache.ensure()).path.exists()


async def test_a_hub_that_is_killed_takes_its_helper_along_and_the_next_one_cleans_up(cache):
    holder = hold(cache.warehouse)
    code = (
        "import asyncio; from pathlib import Path; from marimohub.snapshots.cache import SnapshotCache;"
        f"asyncio.run(SnapshotCache(Path({str(cache.root)!r}), Path({str(cache.warehouse)!r})).ensure())"
    )
    hub = subprocess.Popen([sys.executable, "-c", code])
    try:
        children = Path(f"/proc/{hub.pid}/task/{hub.pid}/children")
        deadline = time.monotonic() + 15
        while not (found := children.read_text().split()) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        (helper,) = found
        assert builds(cache)
        hub.kill()
        hub.wait()
        while Path(f"/proc/{helper}/cmdline").exists() and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{helper}/stat").read_text().split()[2] == "Z":
                    break
            await asyncio.sleep(0.05)
        assert time.monotonic() < deadline, "the helper outlived its hub"
    finally:
        let_go(cache.warehouse, holder)
        hub.kill()
    SnapshotCache(cache.root, cache.warehouse)
    assert os.listdir(cache.root) == []


async def test_errors_of_the_helper_arrive_as_what_they_are(tmp_path, warehouse, monkeypatch):
    missing = SnapshotCache(tmp_path / "cache", tmp_path / "missing.duckdb")
    with pytest.raises(source.SourceMissing, match="does not exist"):
        await missing.ensure()
    cache = SnapshotCache(tmp_path / "cache", warehouse, deadline=0.3)
    holder = hold(warehouse)
    monkeypatch.setattr(cache_module, "VERSION_DEADLINE", 0.1)
    try:
        with pytest.raises(source.SourceBusy, match=r"was busy for 0\.3 s"):
            await cache.ensure()
    finally:
        let_go(warehouse, holder)
    assert os.listdir(cache.root) == []


async def test_whoever_looks_while_it_is_linked_finds_a_whole_snapshot(cache, tmp_path):
    first = await cache.ensure()
    await asyncio.to_thread(commit, cache.warehouse, "INSERT INTO t VALUES (1)")
    second = await cache.ensure()
    folder = tmp_path / "snapshot"
    path = cache.link(first, folder)
    stop = threading.Event()

    def relink() -> None:
        while not stop.is_set():
            cache.link(second, folder)
            cache.link(first, folder)

    thread = threading.Thread(target=relink)
    thread.start()
    try:
        whole = {first.path.read_bytes(), second.path.read_bytes()}
        assert {path.read_bytes() for _ in range(300)} == whole
    finally:
        stop.set()
        thread.join()


async def test_old_snapshots_go_and_those_just_handed_out_stay(cache, tmp_path):
    taken = []
    for number in range(5):
        await asyncio.to_thread(commit, cache.warehouse, f"INSERT INTO t VALUES ({number})")
        taken.append(await cache.ensure())
        os.utime(taken[-1].path.with_suffix(".json"), (number, number))
    linked = cache.link(taken[0], tmp_path / "snapshot")
    assert cache.collect() == [], "all were handed out just now"
    cache._handed_out.clear()
    assert sorted(cache.collect()) == sorted(one.key for one in taken[:2])
    assert rows(linked, "SELECT count(*) FROM t") == [(1001,)]
    with pytest.raises(SnapshotError, match="Open the notebook again"):
        cache.link(taken[1], tmp_path / "other")
    cache.max_age = 10
    assert sorted(cache.collect()) == sorted(one.key for one in taken[2:4])
    assert cache.find(taken[4].key) is not None, "the newest one stays"
