"""People's folders: what is put there, what is taken away, and that nothing planted there leads anywhere."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marimohub.snapshots import cache as cache_module
from marimohub.snapshots import shelf
from marimohub.snapshots.cache import Snapshot, SnapshotCache
from marimohub.snapshots.errors import SnapshotError
from tests.snapshots.conftest import commit, plan, rows, settled, stored

pytestmark = pytest.mark.unit

STABLE = ["warehouse.duckdb", "warehouse.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "users" / "ann" / "snapshot"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else with a file in it."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "precious").write_text("precious")
    return path


@pytest.fixture
def shm() -> Iterator[Path]:
    """A folder on another file system."""
    path = Path("/dev/shm") / f"marimohub-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"needs a second file system: {error}")
    yield path
    shutil.rmtree(path)


async def governed(cache: SnapshotCache, add: int = 1) -> Snapshot:
    return await cache.governed(await cache.raw(), plan("t", add=add))


async def next_one(cache: SnapshotCache, add: int = 1) -> Snapshot:
    """After one more commit."""
    await asyncio.to_thread(commit, cache.warehouse, "INSERT INTO t VALUES (1)")
    return await governed(cache, add)


def files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name not in STABLE)


def forget(cache: SnapshotCache) -> None:
    """Let the time pass in which what was handed out is safe."""
    for one in (cache._raw, cache._parts, cache._governed):
        one._found.clear()


async def test_linking_takes_no_room_and_nobody_else_may_look(cache, folder):
    first = await governed(cache)
    path = cache.link(first, folder)
    assert path == folder / f"warehouse-{first.key[:16]}.duckdb"
    assert path.stat().st_ino == first.path.stat().st_ino
    assert path.stat().st_mode & 0o777 == 0o440
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.readlink(folder / "warehouse.duckdb") == path.name
    assert sorted(os.listdir(folder)) == sorted([path.name, *STABLE])
    assert cache.link(first, folder) == path
    assert first.path.stat().st_nlink == 2


async def test_the_json_says_what_is_there_and_the_hub_remembers_more(cache, folder):
    first = await governed(cache)
    path = cache.link(first, folder, person="ann", epoch=7)
    about = json.loads((folder / "warehouse.json").read_text())
    assert (about["file"], about["key"], about["version"]) == (path.name, first.key, first.version)
    assert about["created"].endswith("Z")
    assert about["checked"].endswith("Z")
    assert (about["governed"], about["warehouse"]) == (True, "team.duckdb")
    assert [table["name"] for table in about["tables"]] == ["t"]
    assert not {"person", "epoch", "plan"} & set(about)
    kept = cache.linked(folder)
    assert (kept["person"], kept["epoch"], kept["key"], kept["plan"]) == ("ann", 7, first.key, first.plan)
    assert SnapshotCache(cache.root, cache.warehouse).linked(folder) == kept
    assert cache.linked(folder.parent) == {}
    (folder / "warehouse.json").write_text("{}")
    assert cache.linked(folder) == kept


async def test_the_last_but_one_stays_and_those_before_it_go(cache, folder):
    old = cache.link(await governed(cache), folder)
    new = cache.link(await next_one(cache), folder)
    assert files(folder) == sorted([old.name, new.name])
    newest = cache.link(await governed(cache, add=2), folder)
    assert files(folder) == sorted([new.name, newest.name])
    assert rows(new, "SELECT max(i) FROM t") == [(1000,)]
    assert rows(folder / "warehouse.duckdb", "SELECT max(i) FROM t") == [(1001,)]


async def test_after_unlinking_nothing_of_before_comes_back(cache, folder):
    old = cache.link(await governed(cache), folder)
    cache.unlink(folder)
    new = cache.link(await governed(cache, add=2), folder)
    assert files(folder) == [new.name]
    assert not old.exists()


async def test_who_has_it_open_keeps_it(cache, folder):
    path = cache.link(await governed(cache), folder)
    inode = path.stat().st_ino
    with open(path, "rb") as reader:
        cache.unlink(folder)
        assert not path.exists()
        assert os.fstat(reader.fileno()).st_ino == inode
        assert len(reader.read()) > 100_000


async def test_whoever_looks_while_it_is_linked_finds_a_whole_snapshot(cache, folder):
    first = await governed(cache)
    second = await next_one(cache)
    cache.link(first, folder)
    stop = threading.Event()

    def relink() -> None:
        while not stop.is_set():
            cache.link(second, folder)
            cache.link(first, folder)

    thread = threading.Thread(target=relink)
    thread.start()
    try:
        whole = {first.path.read_bytes(), second.path.read_bytes()}
        assert {(folder / "warehouse.duckdb").read_bytes() for _ in range(200)} == whole
    finally:
        stop.set()
        thread.join()


async def test_a_folder_on_another_file_system_gets_a_copy(cache, shm):
    snapshot = await governed(cache)
    path = cache.link(snapshot, shm / "snapshot")
    assert path.stat().st_dev != snapshot.path.stat().st_dev
    assert path.read_bytes() == snapshot.path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o440
    cache.link(snapshot, shm / "snapshot")
    assert sorted(os.listdir(shm / "snapshot")) == sorted([path.name, *STABLE])
    cache.unlink(shm / "snapshot")
    assert os.listdir(shm / "snapshot") == []


async def test_what_was_removed_meanwhile_is_told_as_such(cache, folder):
    snapshot = await governed(cache)
    snapshot.path.unlink()
    with pytest.raises(SnapshotError, match="no longer there"):
        cache.link(snapshot, folder)
    assert os.listdir(folder) == []


async def test_a_folder_that_is_a_link_is_refused(cache, folder, outside):
    snapshot = await governed(cache)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(outside)
    with pytest.raises(SnapshotError, match="could not be stored"):
        cache.link(snapshot, folder)
    with pytest.raises(SnapshotError, match="could not be removed"):
        cache.unlink(folder)
    assert os.listdir(outside) == ["precious"]
    assert (outside / "precious").read_text() == "precious"


@pytest.mark.parametrize("to_folder", [False, True], ids=["to a file", "to a folder"])
async def test_names_that_are_planted_as_links_lead_nowhere(cache, folder, outside, to_folder):
    snapshot = await governed(cache)
    folder.mkdir(parents=True)
    name = f"warehouse-{snapshot.key[:16]}.duckdb"
    for planted in (name, *STABLE, "other", f"{name}.wal"):
        (folder / planted).symlink_to(outside if to_folder else outside / "precious")
    path = cache.link(snapshot, folder)
    assert not path.is_symlink()
    assert path.stat().st_ino == snapshot.path.stat().st_ino
    assert sorted(os.listdir(folder)) == sorted([name, *STABLE])
    (folder / "other").symlink_to(outside if to_folder else outside / "precious")
    cache.unlink(folder)
    assert os.listdir(folder) == []
    assert os.listdir(outside) == ["precious"]
    assert (outside / "precious").read_text() == "precious"


@pytest.mark.parametrize("which", ["file", *STABLE])
async def test_names_that_are_planted_as_folders_lead_nowhere(cache, folder, outside, which):
    snapshot = await governed(cache)
    name = f"warehouse-{snapshot.key[:16]}.duckdb"
    planted = folder / (name if which == "file" else which)
    planted.mkdir(parents=True)
    (planted / "in").symlink_to(outside)
    with pytest.raises(SnapshotError, match="could not be stored"):
        cache.link(snapshot, folder)
    assert not [entry for entry in os.listdir(folder) if entry.endswith(".part")]
    assert os.listdir(outside) == ["precious"]
    cache.unlink(folder)
    assert os.listdir(folder) == [planted.name]
    planted.joinpath("in").unlink()
    planted.rmdir()
    assert cache.link(snapshot, folder).stat().st_ino == snapshot.path.stat().st_ino


async def test_a_name_that_is_another_file_is_replaced(cache, folder):
    snapshot = await governed(cache)
    path = cache.link(snapshot, folder)
    path.unlink()
    path.write_bytes(b"something else")
    assert cache.link(snapshot, folder).stat().st_ino == snapshot.path.stat().st_ino
    assert snapshot.path.read_bytes() != b"something else"


async def test_unlinking_takes_everything_and_the_memory_of_it(cache, folder):
    first = await governed(cache)
    cache.link(first, folder)
    cache.link(await next_one(cache), folder)
    cache.unlink(folder)
    assert os.listdir(folder) == []
    assert cache.linked(folder) == {}
    assert first.path.stat().st_nlink == 1
    cache.unlink(folder)
    shutil.rmtree(folder)
    cache.unlink(folder)


# what is removed


@pytest.fixture
def rush(monkeypatch: pytest.MonkeyPatch) -> Callable[[SnapshotCache], list[str]]:
    """Remove all that is unused, whatever its age."""

    def collect(cache: SnapshotCache) -> list[str]:
        forget(cache)
        cache.max_age = -1
        try:
            return cache.collect()
        finally:
            cache.max_age = 1e9

    return collect


async def test_what_is_linked_and_the_newest_copy_stay(cache, folder, rush):
    first, second = await governed(cache), await next_one(cache)
    await settled(cache)
    cache.link(first, folder)
    newest = second.version
    gone = rush(cache)
    assert {second.key, first.version} <= set(gone)
    assert not {first.key, newest} & set(gone)
    assert rows(folder / "warehouse.duckdb", "SELECT count(*) FROM t") == [(1000,)]
    assert [name for name in stored(cache) if not name.endswith(".json")] == [
        f"governed/{first.key}.duckdb",
        f"raw/{newest}.duckdb",
    ]
    assert len(stored(cache)) == 4


async def test_what_was_just_handed_out_stays(cache):
    first = await governed(cache)
    await settled(cache)
    cache.max_age, cache.max_bytes = -1, 0
    assert cache.collect() == []
    forget(cache)
    await governed(cache)
    assert first.key not in cache.collect()
    forget(cache)
    assert first.key in cache.collect()


async def test_what_was_not_used_for_long_goes(cache, folder):
    first, second = await governed(cache), await governed(cache, add=2)
    await settled(cache)
    cache.max_age = 100
    for path in cache.root.glob("*/*"):
        os.utime(path, (1000, 1000))
    os.utime(second.path)
    forget(cache)
    gone = cache.collect()
    assert first.key in gone
    assert second.key not in gone
    assert not first.path.exists()
    assert not first.path.with_suffix(".json").exists()
    assert second.path.exists()


async def test_what_is_too_much_goes_the_longest_unused_first(cache):
    made = [await governed(cache, add=add) for add in range(4)]
    await settled(cache)
    for number, snapshot in enumerate(made):
        os.utime(snapshot.path, (1_000_000 + number, 1_000_000 + number))
    cache.max_age = 1e12
    forget(cache)
    assert cache.collect() == []
    total = sum(path.stat().st_size for path in cache.root.glob("*/*") if path.suffix != ".json")
    cache.max_bytes = total - made[0].size - 1
    assert cache.collect() == [made[0].key, made[1].key]


async def test_links_of_people_without_a_server_are_taken_away(cache, tmp_path, rush, monkeypatch):
    monkeypatch.setattr(cache_module, "LINKED_GRACE", -1)
    snapshot = await governed(cache)
    await settled(cache)
    ann, bob, eve = (tmp_path / "users" / name / "snapshot" for name in ("ann", "bob", "eve"))
    for folder in (ann, bob, eve):
        cache.link(snapshot, folder)
    assert sorted(link["folder"] for link in cache.links()) == [str(ann), str(bob), str(eve)]
    shutil.rmtree(eve)
    restarted = SnapshotCache(cache.root, cache.warehouse)
    restarted.collect(in_use=[ann])
    assert files(ann)
    assert os.listdir(bob) == []
    assert restarted.linked(ann)
    assert restarted.linked(bob) == restarted.linked(eve) == {}
    assert snapshot.key not in rush(restarted)
    assert restarted.links() == [restarted.linked(ann)]
    restarted.collect(in_use=[])
    assert snapshot.key in rush(restarted)


async def test_what_was_linked_just_now_stays_for_the_server_that_is_about_to_start(cache, folder):
    path = cache.link(await governed(cache), folder)
    cache.collect(in_use=[])
    assert path.exists()
    assert cache.linked(folder)


async def test_a_planted_folder_does_not_keep_others_links_from_being_taken(cache, tmp_path, outside, monkeypatch):
    monkeypatch.setattr(cache_module, "LINKED_GRACE", -1)
    snapshot = await governed(cache)
    folders = [tmp_path / "users" / str(number) / "snapshot" for number in range(3)]
    for folder in folders:
        cache.link(snapshot, folder)
    shutil.rmtree(folders[1])
    folders[1].symlink_to(outside)
    cache.collect(in_use=[])
    assert os.listdir(folders[0]) == os.listdir(folders[2]) == []
    assert os.listdir(outside) == ["precious"]


async def test_what_killed_processes_left_on_the_shelves_goes_after_a_while(cache):
    await governed(cache)
    await settled(cache)
    before = stored(cache)
    left = [cache.root / "parts" / "a.parquet", cache.root / "governed" / "b.json", cache.root / "raw" / ".c.json.12"]
    for path in left:
        path.touch()
    SnapshotCache(cache.root, cache.warehouse)
    assert all(path.exists() for path in left), "another process may be about to finish them"
    for path in left:
        os.utime(path, (1000, 1000))
    SnapshotCache(cache.root, cache.warehouse)
    assert stored(cache) == before


def test_an_empty_shelf_answers_everything(tmp_path):
    one = shelf.Shelf(tmp_path / "shelf", ".duckdb")
    assert one.find("0" * 64) is None
    one.remove("0" * 64)
    one.settle("0" * 64)
    assert one.unused() == []
    assert one.size() == 0
