"""The cache when things are killed, cancelled, replaced meanwhile, written to by somebody else, or out of room."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from marimohub.snapshots import cache as cache_module
from marimohub.snapshots import helper, source
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.errors import HelperFailed, NoSpace
from marimohub.snapshots.masked import Limits
from marimohub.snapshots.plan import ColumnPlan, Plan, TablePlan
from tests.conftest import missing
from tests.snapshots.conftest import builds, hold, let_go, plan, rows, settled, stored


@pytest.fixture
def slow(tmp_path: Path) -> SnapshotCache:
    """Of a warehouse whose second table takes a while to mask and to build."""
    path = tmp_path / "slow.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE quick AS SELECT 1 AS i")
        connection.execute("CREATE TABLE slow AS SELECT range AS i FROM range(3000000)")
    return SnapshotCache(tmp_path / "of-slow", path)


BOTH = plan("quick", "slow")
HALFWAY = {"mask": "Applying your masks (1 of 2", "build": "Building your snapshot (1 of 2"}
HUB = """
import asyncio
from pathlib import Path
from marimohub.snapshots.cache import SnapshotCache
asyncio.run(SnapshotCache(Path({root!r}), Path({warehouse!r})).plain())
"""


def hub(cache: SnapshotCache) -> tuple[subprocess.Popen, str]:
    """Another hub on the same folder, and the id of the helper that copies for it."""
    code = HUB.format(root=str(cache.root), warehouse=str(cache.warehouse))
    process = subprocess.Popen([sys.executable, "-c", code])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    return process, found[0]


def ended(helper_id: str) -> bool:
    try:
        return Path(f"/proc/{helper_id}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_under_a_writer_snapshots_are_made_and_the_event_loop_stays_free(tmp_path, start_writer):
    live = tmp_path / "live.duckdb"
    writer = start_writer(live, "busy")
    cache = SnapshotCache(tmp_path / "cache", live, deadline=20)
    wanted = Plan((TablePlan("main", "counter", (ColumnPlan("n", '"n"'),)),))
    delays: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            delays.append(time.perf_counter() - before - 0.005)

    ticking = asyncio.create_task(tick())
    for _ in range(5):
        committed = writer.committed()
        snapshot = await cache.governed(await cache.raw(), wanted)
        assert (await asyncio.to_thread(rows, snapshot.path, "SELECT n FROM counter"))[0][0] >= committed
    ticking.cancel()
    assert sorted(delays)[len(delays) * 9 // 10] < 0.1


async def test_a_killed_copy_gives_a_sentence_and_leaves_nothing(cache, helpers):
    holder = hold(cache.warehouse)
    try:
        building = asyncio.create_task(cache.plain())
        (await helpers.started("copy")).kill()
        with pytest.raises(HelperFailed, match=r"was interrupted \(signal 9\)"):
            await building
        assert builds(cache) == stored(cache) == []
    finally:
        let_go(cache.warehouse, holder)
    assert (await cache.plain()).path.exists()


@pytest.mark.parametrize("task", HALFWAY)
async def test_a_killed_helper_leaves_no_half_made_entry_and_no_folder(slow, helpers, task):
    raw = await slow.raw()
    await settled(slow)

    def kill_halfway(_part: float, what: str) -> None:
        if what.startswith(HALFWAY[task]):
            helpers.processes[-1].kill()

    with pytest.raises(HelperFailed, match=r"was interrupted \(signal 9\)"):
        await slow.governed(raw, BOTH, kill_halfway)
    assert helpers.tasks[-1] == task
    assert builds(slow) == []
    left = [name for name in stored(slow) if not name.startswith("raw/")]
    assert left == [] if task == "mask" else {name.partition("/")[0] for name in left} == {"parts"}
    assert rows((await slow.governed(raw, BOTH)).path, "SELECT count(*) FROM slow") == [(3_000_000,)]


async def test_a_killed_look_at_the_copy_leaves_nothing(cache, helpers):
    def kill(_part: float, what: str) -> None:
        if what == "Looking at what is in it":
            helpers.processes[-1].kill()

    with pytest.raises(HelperFailed, match=r"was interrupted \(signal 9\)"):
        await cache.raw(kill)
    assert builds(cache) == stored(cache) == []
    assert (await cache.plain()).path.exists()


async def test_giving_up_kills_the_helper_and_leaves_nothing(cache, helpers):
    holder = hold(cache.warehouse)
    try:
        waiting = [asyncio.create_task(cache.plain()) for _ in range(3)]
        process = await helpers.started("copy")
        for task in waiting[:2]:
            task.cancel()
        await asyncio.sleep(0.1)
        assert process.returncode is None, "one caller still waits"
        waiting[2].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert process.returncode is not None
        assert builds(cache) == stored(cache) == []
    finally:
        let_go(cache.warehouse, holder)
    assert (await cache.plain()).path.exists()


@pytest.mark.parametrize("task", HALFWAY)
async def test_giving_up_halfway_kills_the_helper_and_leaves_the_next_one_free(slow, helpers, task):
    raw = await slow.raw()
    halfway = asyncio.Event()
    building = asyncio.create_task(
        slow.governed(raw, BOTH, lambda _part, what: halfway.set() if what.startswith(HALFWAY[task]) else None)
    )
    await halfway.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert helpers.tasks[-1] == task
    assert helpers.processes[-1].returncode is not None
    assert builds(slow) == []
    assert not any(name.startswith("governed/") for name in stored(slow))
    assert rows((await slow.governed(raw, BOTH)).path, "SELECT count(*) FROM slow") == [(3_000_000,)]


async def test_who_waits_for_its_turn_may_give_up_and_the_others_go_on(slow, helpers):
    raw = await slow.raw()
    first = asyncio.create_task(slow.governed(raw, BOTH))
    await helpers.started("mask")
    second = asyncio.create_task(slow.governed(raw, plan("quick")))
    third = asyncio.create_task(slow.governed(raw, plan("quick", add=2)))
    await asyncio.sleep(0.05)
    second.cancel()
    found = await asyncio.gather(first, second, third, return_exceptions=True)
    assert isinstance(found[1], asyncio.CancelledError)
    assert rows(found[0].path, "SELECT count(*) FROM slow") == [(3_000_000,)]
    assert rows(found[2].path, "SELECT i FROM quick") == [(3,)]
    assert builds(slow) == []


async def test_a_build_that_takes_too_long_is_stopped(slow, helpers):
    raw = await slow.raw()
    slow.limits = Limits(timeout=0.05)
    with pytest.raises(HelperFailed, match=r"took longer than 0\.05 s"):
        await slow.governed(raw, BOTH)
    assert helpers.processes[-1].returncode is not None
    assert builds(slow) == []


async def test_a_hub_that_is_killed_takes_its_helper_along_and_the_next_one_cleans_up(cache):
    holder = hold(cache.warehouse)
    try:
        process, helper_id = hub(cache)
        assert builds(cache)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 15
        while not ended(helper_id) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert time.monotonic() < deadline, "the helper outlived its hub"
    finally:
        let_go(cache.warehouse, holder)
        process.kill()
    SnapshotCache(cache.root, cache.warehouse)
    assert builds(cache) == stored(cache) == []


async def test_the_build_of_a_living_process_stays_when_another_starts(cache):
    holder = hold(cache.warehouse)
    try:
        process, _helper = hub(cache)
        under_way = builds(cache)
        dead = cache.root / ".build-dead"
        dead.mkdir()
        (dead / "raw.duckdb").touch()
        SnapshotCache(cache.root, cache.warehouse)
        assert builds(cache) == under_way
        assert len(under_way) == 1
        let_go(cache.warehouse, holder)
        assert process.wait(60) == 0
        assert builds(cache) == []
        assert len(stored(cache)) == 2
    finally:
        let_go(cache.warehouse, holder)
        process.kill()


async def test_errors_of_the_helper_arrive_as_what_they_are(tmp_path, warehouse, monkeypatch):
    lost = SnapshotCache(tmp_path / "cache", tmp_path / "missing.duckdb")
    with pytest.raises(source.SourceMissing, match="does not exist"):
        await lost.plain()
    cache = SnapshotCache(tmp_path / "cache", warehouse, deadline=0.3)
    holder = hold(warehouse)
    monkeypatch.setattr(cache_module, "VERSION_DEADLINE", 0.1)
    try:
        with pytest.raises(source.SourceBusy, match=r"was busy for 0\.3 s"):
            await cache.plain()
    finally:
        let_go(warehouse, holder)
    assert builds(cache) == stored(cache) == []


async def test_no_value_of_the_data_is_in_an_error(tmp_path):
    path = tmp_path / "w.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 'Geheim4711' AS s")
    cache = SnapshotCache(tmp_path / "cache", path)
    raw = await cache.raw()
    for sql in ("CAST(s AS INTEGER)", "error(s)", "nothing(s)", "s::DATE"):
        with pytest.raises(HelperFailed, match=r"main\.t could not be masked \(\w+\)") as caught:
            await cache.governed(raw, Plan((TablePlan("main", "t", (ColumnPlan("s", sql),)),)))
        assert "Geheim" not in str(caught.value)


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process, or of one that it starts, becomes larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("stage", "size"), [("copy", 100_000), ("mask", 200), ("build", 100_000)])
async def test_without_room_there_is_a_sentence_and_nothing_is_left(cache, helpers, stage, size):
    raw = await cache.raw() if stage != "copy" else None
    await settled(cache)
    before = stored(cache)
    with files_up_to(size), pytest.raises(NoSpace, match=r"[Nn]o room"):
        await cache.governed(raw or await cache.raw(), plan("t"))
    assert helpers.tasks[-1] == stage
    assert builds(cache) == []
    left = [name for name in stored(cache) if name not in before]
    assert {name.partition("/")[0] for name in left} == ({"parts"} if stage == "build" else set())
    assert rows((await cache.governed(await cache.raw(), plan("t"))).path, "SELECT count(*) FROM t") == [(1000,)]


async def test_too_little_memory_is_told_as_such(slow):
    raw = await slow.raw()
    slow.limits = Limits(memory="1MB")
    with pytest.raises(NoSpace, match="snapshot_memory_limit"):
        await slow.governed(raw, BOTH)
    assert builds(slow) == []


async def test_a_full_disk_leaves_nothing_and_does_no_harm(tmp_path, warehouse):
    point = tmp_path / "disk"
    point.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(point)], capture_output=True)
    if done.returncode:
        missing("mounts", f"a tmpfs cannot be mounted: {done.stderr.decode().strip()}")
    try:
        cache = SnapshotCache(point / "cache", warehouse)
        raw = await cache.raw()
        await settled(cache)
        room = os.statvfs(point)
        (point / "ballast").write_bytes(b"x" * (room.f_bavail * room.f_frsize - 40_000))
        before = stored(cache)
        for _ in range(2):
            with pytest.raises(NoSpace):
                await cache.governed(raw, plan("t"))
            assert builds(cache) == []
            assert not any(name.startswith("governed/") for name in set(stored(cache)) - set(before))
        (point / "ballast").unlink()
        assert rows((await cache.governed(raw, plan("t"))).path, "SELECT count(*) FROM t") == [(1000,)]
        await settled(cache)
    finally:
        subprocess.run(["umount", str(point)], check=True)


async def test_a_helper_that_says_nonsense_is_an_error(cache, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HelperFailed, match="status 1"):
        await helper.run("copy", {}, timeout=30)
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    with pytest.raises(HelperFailed, match="was interrupted"):
        await helper.run("copy", {}, timeout=30)
