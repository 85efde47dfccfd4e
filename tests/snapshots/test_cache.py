"""One snapshot for many: copied once, masked once, built once, found again, and new when the warehouse is."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from marimohub.snapshots import helper, shelf, source
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.errors import NoSpace
from marimohub.snapshots.plan import ColumnPlan, Plan, TablePlan, ViewPlan
from tests.snapshots.conftest import builds, commit, plan, rows, settled, stored

ALL = ["copy", "mask", "build"]
TEN = [f"t{number}" for number in range(10)]


@pytest.fixture
def ten(tmp_path: Path) -> SnapshotCache:
    """Of a warehouse with ten tables."""
    path = tmp_path / "ten.duckdb"
    with duckdb.connect(str(path)) as connection:
        for name in TEN:
            connection.execute(f"CREATE TABLE {name} AS SELECT range AS i FROM range(3000)")
    return SnapshotCache(tmp_path / "of-ten", path, masking_key="key")


async def governed(cache: SnapshotCache, wanted=None, report=lambda _part, _what: None):
    return await cache.governed(await cache.raw(report), wanted or plan("t"), report)


async def test_fifty_who_open_at_once_cause_one_process_of_each_kind(cache, helpers):
    found = await asyncio.gather(*(governed(cache) for _ in range(50)))
    assert helpers.tasks == ALL
    assert len({snapshot.path for snapshot in found}) == 1
    assert rows(found[0].path, "SELECT count(*), min(i), max(i) FROM t") == [(1000, 1, 1000)]
    assert builds(cache) == []


async def test_a_plain_snapshot_needs_a_copy_and_nothing_else(cache, helpers):
    found = await asyncio.gather(*(cache.plain() for _ in range(50)))
    assert helpers.tasks == ["copy"]
    assert {snapshot.plan for snapshot in found} == {""}
    assert rows(found[0].path, "SELECT count(*) FROM t") == [(1000,)]
    assert found[0].path.stat().st_mode & 0o777 == 0o440


async def test_an_unchanged_warehouse_needs_nothing_also_after_a_restart(cache, helpers):
    first = await governed(cache)
    again = await governed(cache)
    restarted = await governed(SnapshotCache(cache.root, cache.warehouse))
    assert (first.reused, again.reused, restarted.reused) == (False, True, True)
    assert first.path == again.path == restarted.path
    assert first.created == again.created == restarted.created <= again.checked <= restarted.checked
    assert first.manifest == again.manifest == restarted.manifest
    assert helpers.tasks == ALL


async def test_a_commit_makes_the_next_snapshot_new_and_leaves_the_old_one_as_it_was(cache, helpers):
    first = await governed(cache)
    await asyncio.to_thread(commit, cache.warehouse, "INSERT INTO t VALUES (4711)")
    second = await governed(cache)
    assert second.key != first.key
    assert second.version != first.version
    assert rows(first.path, "SELECT count(*) FROM t") == [(1000,)]
    assert rows(second.path, "SELECT count(*) FROM t") == [(1001,)]
    assert helpers.tasks == [*ALL, *ALL]


async def test_the_key_is_that_of_what_was_copied_when_a_commit_comes_between(cache, monkeypatch):
    real = helper.run

    async def late(task, spec, **options):
        if task == "copy":
            await asyncio.to_thread(commit, cache.warehouse, "INSERT INTO t VALUES (1)")
        return await real(task, spec, **options)

    before = source.version(cache.warehouse)
    monkeypatch.setattr(helper, "run", late)
    snapshot = await cache.plain()
    assert snapshot.version == source.version(cache.warehouse) != before
    assert rows(snapshot.path, "SELECT count(*) FROM t") == [(1001,)]


def _truncate(path: Path) -> None:
    path.chmod(0o640)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _half_json(path: Path) -> None:
    about = path.with_suffix(".json")
    about.write_bytes(about.read_bytes()[:-20])


def _no_size(path: Path) -> None:
    about = path.with_suffix(".json")
    about.write_text(json.dumps({**json.loads(about.read_bytes()), "size": None}))


DAMAGES = {
    "truncated": _truncate,
    "missing": Path.unlink,
    "without JSON": lambda path: path.with_suffix(".json").unlink(),
    "with half a JSON": _half_json,
    "with empty JSON": lambda path: path.with_suffix(".json").write_bytes(b""),
    "with a JSON list": lambda path: path.with_suffix(".json").write_bytes(b"[]"),
    "without a size": _no_size,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_entries_that_are_not_whole_are_made_again(cache, helpers, damage):
    first = await governed(cache)
    await settled(cache)
    for folder, task in (("raw", ["copy"]), ("governed", ["build"])):
        helpers.tasks.clear()
        helpers.tables.clear()
        (file,) = (cache.root / folder).glob("*.duckdb")
        damage(file)
        again = await governed(SnapshotCache(cache.root, cache.warehouse))
        assert helpers.tasks == task
        assert rows(again.path, "SELECT count(*) FROM t") == [(1000,)]
        assert again.key == first.key
    (part,) = (cache.root / "parts").glob("*.parquet")
    damage(part)
    first.path.unlink()
    helpers.tasks.clear()
    await governed(cache)
    assert helpers.tasks == ["mask", "build"]


async def test_entries_of_another_boot_count_only_if_they_were_on_disk(cache, helpers, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shelf.Shelf, "settle", lambda self, key: None)
        await governed(cache)
        await settled(cache)
    monkeypatch.setattr(shelf, "boot", lambda: "the next boot")
    helpers.tasks.clear()
    restarted = SnapshotCache(cache.root, cache.warehouse)
    assert not (await governed(restarted)).reused
    assert helpers.tasks == ALL
    await settled(restarted)
    monkeypatch.setattr(shelf, "boot", lambda: "the one after that")
    last = SnapshotCache(cache.root, cache.warehouse)
    assert (await governed(last)).reused
    assert helpers.tasks == ALL


async def test_parts_of_another_boot_are_not_used(cache, helpers, monkeypatch):
    first = await governed(cache)
    await settled(cache)
    monkeypatch.setattr(shelf, "boot", lambda: "the next boot")
    first.path.unlink()
    helpers.tasks.clear()
    await governed(SnapshotCache(cache.root, cache.warehouse))
    assert helpers.tasks == ["mask", "build"]


async def test_a_failed_build_fails_for_all_who_wait_and_not_for_the_next(cache, monkeypatch):
    async def fail(*_arguments, **_options):
        await asyncio.sleep(0.05)
        raise NoSpace("There is no room.")

    with monkeypatch.context() as patch:
        patch.setattr(helper, "run", fail)
        found = await asyncio.gather(*(cache.plain() for _ in range(5)), return_exceptions=True)
    assert [type(one) for one in found] == [NoSpace] * 5
    assert (await cache.plain()).path.exists()


async def test_different_plans_at_once_share_the_parts_that_they_have_in_common(ten, helpers):
    raw = await ten.raw()
    first, second = await asyncio.gather(
        ten.governed(raw, plan("t0", "t1", "t2")), ten.governed(raw, plan("t1", "t2", "t3"))
    )
    assert first.key != second.key
    # whichever comes first, nothing is masked twice
    assert sorted(table for one in helpers.of("mask") for table in one) == ["t0", "t1", "t2", "t3"]
    assert sorted(helpers.of("build")) == [["t0", "t1", "t2"], ["t1", "t2", "t3"]]
    assert rows(second.path, "SELECT count(*), max(i) FROM t3") == [(3000, 3000)]


async def test_other_masks_of_the_same_table_share_nothing(ten, helpers):
    raw = await ten.raw()
    found = await asyncio.gather(*(ten.governed(raw, plan("t0", add=add)) for add in (1, 2)))
    assert helpers.of("mask") == [["t0"], ["t0"]]
    assert [rows(one.path, "SELECT max(i) FROM t0")[0][0] for one in found] == [3000, 3001]


async def test_another_masking_key_shares_nothing(ten, helpers):
    first = await governed(ten, plan("t0"))
    second = await governed(SnapshotCache(ten.root, ten.warehouse, masking_key="another"), plan("t0"))
    assert first.key != second.key
    assert helpers.of("mask") == [["t0"], ["t0"]]


async def test_of_ten_tables_only_the_one_that_changed_is_masked_again(ten, helpers):
    await governed(ten, plan(*TEN))
    await asyncio.to_thread(commit, ten.warehouse, "UPDATE t7 SET i = 0 WHERE i = 2999")
    again = await governed(ten, plan(*TEN))
    assert helpers.of("mask") == [TEN, ["t7"]]
    assert rows(again.path, "SELECT max(i) FROM t7") == [(2999,)]
    await asyncio.to_thread(commit, ten.warehouse, "CREATE TABLE more AS SELECT 1 AS i; CREATE VIEW v AS SELECT 1")
    await governed(ten, plan(*TEN))
    assert helpers.of("mask") == [TEN, ["t7"]]


async def test_all_who_wait_hear_of_the_progress(ten):
    heard: list[list[tuple[float, str]]] = [[] for _ in range(5)]

    def listen(number: int):
        return lambda part, what: heard[number].append((part, what))

    await asyncio.gather(*(governed(ten, plan(*TEN), listen(number)) for number in range(5)))
    for one in heard:
        said = [what for _part, what in one]
        assert {"Copying the warehouse", "Looking at what is in it"} <= set(said)
        assert "Applying your masks (10 of 10 tables)" in said
        assert "Building your snapshot (10 of 10 tables)" in said
        building = [part for part, what in one if "tables)" in what]
        assert building == sorted(building)
        assert one[-1] == (1.0, "Building your snapshot (10 of 10 tables)")


async def test_rows_are_counted_without_a_snapshot(ten, helpers):
    counted = [
        TablePlan("main", "t0", (ColumnPlan("i", "i"),), "i < $p1", {"p1": 10, "p10": 5}),
        TablePlan("main", "t1", (ColumnPlan("i", "i"),)),
    ]
    assert await ten.count(counted) == [(10, 3000), (3000, 3000)]
    assert helpers.tasks == ["copy", "count"]
    assert builds(ten) == []
    assert [name.partition("/")[0] for name in stored(ten)] == ["raw", "raw"]


async def test_the_manifest_names_what_is_there_and_what_is_not(ten):
    views = (
        ViewPlan("main", "over", "CREATE VIEW over AS SELECT * FROM under"),
        ViewPlan("main", "under", "CREATE VIEW under AS SELECT i FROM t0"),
        ViewPlan("main", "lost", "CREATE VIEW lost AS SELECT * FROM t9"),
        ViewPlan("main", "sly", "CREATE VIEW sly AS SELECT 1; CREATE TABLE more AS SELECT 1"),
        ViewPlan("main", "reader", "CREATE VIEW reader AS SELECT * FROM read_text('/etc/passwd')"),
    )
    wanted = replace(plan("t0", "t1"), views=views, omitted=(("table", "main.t2", "No policy."),))
    made = await governed(ten, wanted)
    assert [(table["name"], table["rows"], table["filtered"]) for table in made.manifest["tables"]] == [
        ("t0", 3000, False),
        ("t1", 3000, False),
    ]
    assert [view["name"] for view in made.manifest["views"]] == ["over", "under"]
    assert [one["name"] for one in made.manifest["omitted"]] == ["main.t2", "main.lost", "main.sly", "main.reader"]
    assert rows(made.path, "SELECT count(*) FROM over") == [(3000,)]
    assert rows(made.path, "SELECT count(*) FROM duckdb_tables()") == [(2,)]


async def test_a_plan_of_nothing_gives_an_empty_database(ten, helpers):
    made = await governed(ten, Plan())
    assert rows(made.path, "SELECT count(*) FROM duckdb_tables()") == [(0,)]
    assert (made.manifest["tables"], made.manifest["views"]) == ([], [])
    assert helpers.of("mask") == []


async def test_a_condition_that_keeps_nothing_leaves_the_columns(ten):
    nothing = TablePlan(
        "main", "t0", (ColumnPlan("i", "i"), ColumnPlan("s", "CAST(i AS VARCHAR)")), "i < $p0", {"p0": -1}
    )
    made = await governed(ten, Plan((nothing,)))
    assert rows(made.path, "SELECT column_name, column_type FROM (DESCRIBE t0)") == [("i", "BIGINT"), ("s", "VARCHAR")]
    assert made.manifest["tables"][0]["rows"] == 0
    assert made.manifest["tables"][0]["filtered"]


@pytest.mark.parametrize("name", ["raw", "snapshot", "warehouse", "temp", "system", "main"])
async def test_a_schema_may_be_called_like_a_file_of_ours(tmp_path, name):
    path = tmp_path / "w.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(f'CREATE SCHEMA IF NOT EXISTS w."{name}"; CREATE TABLE w."{name}".t AS SELECT 1 AS i')
    cache = SnapshotCache(tmp_path / "cache", path)
    wanted = Plan((TablePlan(name, "t", (ColumnPlan("i", '"i"'),)),))
    made = await governed(cache, wanted)
    with duckdb.connect(str(made.path), read_only=True) as connection:
        found = connection.execute("SELECT schema_name, table_name, estimated_size FROM duckdb_tables()").fetchall()
    assert found == [(name, "t", 1)]
    assert await cache.count(wanted.tables) == [(1, 1)]


@pytest.mark.parametrize("name", ["snapshot", "temp", "system"])
async def test_a_schema_called_like_a_database_is_brought_up_to_date(tmp_path, helpers, name):
    path = tmp_path / "w.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(f'CREATE SCHEMA w."{name}"')
        for table in ("t", "u"):
            connection.execute(f'CREATE TABLE w."{name}".{table} AS SELECT hash(range) AS i FROM range(200000)')
        connection.execute(f'CREATE TABLE w."{name}".small AS SELECT 1 AS i')
    cache = SnapshotCache(tmp_path / "cache", path)
    wanted = Plan(tuple(TablePlan(name, table, (ColumnPlan("i", '"i"'),)) for table in ("t", "u", "small")))
    await governed(cache, wanted)
    await asyncio.to_thread(commit, path, f'UPDATE w."{name}".small SET i = 2')
    made = await governed(cache, wanted)
    assert "update" in helpers.tasks
    with duckdb.connect(str(made.path), read_only=True) as connection:
        (catalog,) = connection.execute("SELECT current_database()").fetchone() or ("",)
        assert connection.execute(f'FROM "{catalog}"."{name}".small').fetchall() == [(2,)]
