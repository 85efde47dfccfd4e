"""People's folders: what is put there, what is taken away, and that nothing planted there leads anywhere."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.errors import SnapshotError
from tests.snapshots.conftest import governed, next_one, rows

STABLE = ["warehouse.duckdb", "warehouse.json"]


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


def files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name not in STABLE)


async def test_linking_takes_no_room_and_nobody_else_may_look(cache, folder):
    first = await governed(cache)
    path = cache.link(first, folder)
    assert path == folder / first.key[:16] / "warehouse.duckdb"
    assert path.stat().st_ino == first.path.stat().st_ino
    assert path.stat().st_mode & 0o777 == 0o440
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.readlink(folder / "warehouse.duckdb") == f"{first.key[:16]}/warehouse.duckdb"
    assert sorted(os.listdir(folder)) == sorted([first.key[:16], *STABLE])
    assert cache.link(first, folder) == path
    assert first.path.stat().st_nlink == 2


async def test_the_json_says_what_is_there_and_the_hub_remembers_more(cache, folder):
    first = await governed(cache)
    cache.link(first, folder, person="ann", epoch=7)
    about = json.loads((folder / "warehouse.json").read_text())
    assert (about["file"], about["key"], about["version"]) == (
        f"{first.key[:16]}/warehouse.duckdb",
        first.key,
        first.version,
    )
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
    assert files(folder) == sorted([old.parent.name, new.parent.name])
    newest = cache.link(await governed(cache, add=2), folder)
    assert files(folder) == sorted([new.parent.name, newest.parent.name])
    assert rows(new, "SELECT max(i) FROM t") == [(1000,)]
    assert rows(folder / "warehouse.duckdb", "SELECT max(i) FROM t") == [(1001,)]


async def test_after_unlinking_nothing_of_before_comes_back(cache, folder):
    old = cache.link(await governed(cache), folder)
    cache.unlink(folder)
    new = cache.link(await governed(cache, add=2), folder)
    assert files(folder) == [new.parent.name]
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
    assert sorted(os.listdir(shm / "snapshot")) == sorted([snapshot.key[:16], *STABLE])
    cache.unlink(shm / "snapshot")
    assert os.listdir(shm / "snapshot") == []


async def test_what_was_removed_meanwhile_is_told_as_such(cache, folder):
    snapshot = await governed(cache)
    snapshot.path.unlink()
    with pytest.raises(SnapshotError, match="no longer there"):
        cache.link(snapshot, folder)
    assert not [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


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
    target = outside if to_folder else outside / "precious"
    own = folder / snapshot.key[:16]
    own.mkdir(parents=True)
    for planted in (*STABLE, "other", f"{own.name}/warehouse.duckdb", f"{own.name}/warehouse.duckdb.wal"):
        (folder / planted).symlink_to(target)
    path = cache.link(snapshot, folder)
    assert not path.is_symlink()
    assert path.stat().st_ino == snapshot.path.stat().st_ino
    assert sorted(os.listdir(folder)) == sorted([own.name, *STABLE])
    for planted in ("other", f"{own.name}/other"):
        (folder / planted).symlink_to(target)
    cache.unlink(folder)
    assert os.listdir(folder) == []
    assert os.listdir(outside) == ["precious"]
    assert (outside / "precious").read_text() == "precious"


async def test_a_link_in_the_place_of_the_snapshots_own_folder_is_refused(cache, folder, outside):
    snapshot = await governed(cache)
    folder.mkdir(parents=True)
    (folder / snapshot.key[:16]).symlink_to(outside)
    with pytest.raises(SnapshotError, match="could not be stored"):
        cache.link(snapshot, folder)
    cache.unlink(folder)
    assert os.listdir(outside) == ["precious"]
    assert cache.link(snapshot, folder).stat().st_ino == snapshot.path.stat().st_ino
    assert os.listdir(outside) == ["precious"]


@pytest.mark.parametrize("which", ["file", *STABLE])
async def test_names_that_are_planted_as_folders_lead_nowhere(cache, folder, outside, which):
    snapshot = await governed(cache)
    planted = folder / (f"{snapshot.key[:16]}/warehouse.duckdb" if which == "file" else which)
    (planted / "deep").mkdir(parents=True)
    (planted / "deep" / "in").symlink_to(outside)
    with pytest.raises(SnapshotError, match="could not be stored"):
        cache.link(snapshot, folder)
    cache.unlink(folder)
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]
    assert os.listdir(outside) == ["precious"]
    shutil.rmtree(folder)
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
