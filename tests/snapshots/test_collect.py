"""What the cache removes, and what it never does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from marimohub.snapshots import cache as cache_module
from marimohub.snapshots import shelf
from marimohub.snapshots.cache import SnapshotCache
from tests.snapshots.conftest import governed, next_one, plan, rows, settled, stored


def forget(cache: SnapshotCache) -> None:
    """Let the time pass in which what was handed out is safe."""
    for one in (cache._raw, cache._parts, cache._governed):
        one._found.clear()


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


@pytest.mark.parametrize("what", ["Applying your masks (0", "Building your snapshot (0"], ids=["mask", "build"])
async def test_what_a_build_under_way_needs_stays_however_long_it_takes(cache, what):
    raw = await cache.raw()
    await settled(cache)
    await next_one(cache, add=2)
    await settled(cache)
    cache.max_bytes = 0

    def collect(_part: float, said: str) -> None:
        if said.startswith(what):
            forget(cache)
            cache.collect()

    made = await cache.governed(raw, plan("t"), collect)
    assert rows(made.path, "SELECT count(*) FROM t") == [(1000,)]


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
    assert (ann / "warehouse.duckdb").exists()
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


def test_what_is_held_is_in_use_until_all_have_let_go(tmp_path):
    one = shelf.Shelf(tmp_path / "shelf", ".x")
    (tmp_path / "built").write_text("content")
    one.put("key", tmp_path / "built", {})
    one._found.clear()
    with one.held(["key"]):
        with one.held(["key", "other"]):
            assert one.unused() == []
        assert one.unused() == []
    assert [key for _used, _size, key in one.unused()] == ["key"]


async def test_a_command_line_beside_the_hub_removes_nothing(cache):
    first = await governed(cache)
    await settled(cache)
    other = SnapshotCache(
        cache.root, cache.warehouse, masking_key=cache.masking_key, max_age=-1, max_bytes=0, collects=False
    )
    second = await next_one(other)
    await settled(other)
    assert second.version != first.version
    assert cache._governed.find(first.key) is not None
    assert cache.known(first.version) is not None
