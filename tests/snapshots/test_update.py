"""Bringing a governed snapshot up to date: the same as building it anew, and nothing of the former one is left."""

from __future__ import annotations

import asyncio
import random
import secrets
from pathlib import Path

import duckdb
import pytest

from marimohub.snapshots import helper, scrub
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.masked import Limits
from marimohub.snapshots.plan import ColumnPlan, Plan, TablePlan, ViewPlan
from tests.snapshots.conftest import commit

TABLES = 6
WORDS = 40


def plan(names: list[str], where: str | None = None) -> Plan:
    columns = tuple(ColumnPlan(name, f'"{name}"') for name in ("i", "word", "number"))
    tables = tuple(TablePlan("main", name, columns, where) for name in names)
    return Plan(tables, (ViewPlan("main", "all_words", "CREATE VIEW all_words AS SELECT word FROM t0"),))


def needle() -> str:
    return f"needle{secrets.token_hex(12)}"


def make(path: Path, sizes: list[int]) -> dict[str, list[str]]:
    """Tables of the given numbers of rows; each has some rows with a unique word. Returns those words."""
    found: dict[str, list[str]] = {}
    with duckdb.connect(str(path)) as connection:
        for number, size in enumerate(sizes):
            name = f"t{number}"
            connection.execute(f"CREATE TABLE {name} (i INTEGER, word VARCHAR, number BIGINT)")
            connection.execute(
                f"INSERT INTO {name} SELECT i, 'w' || hash(i) % 1000, hash(i) // 2 FROM range({size}) t(i)"
            )
            found[name] = [needle() for _ in range(WORDS)]
            rows = [(size + n, word, n) for n, word in enumerate(found[name])]
            connection.executemany(f"INSERT INTO {name} VALUES (?, ?, ?)", rows)
    return found


def content(path: Path, names: list[str]) -> list[list[tuple]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return [connection.execute(f"FROM {name} ORDER BY ALL").fetchall() for name in [*names, "all_words"]]


def leaks(path: Path, words: list[str]) -> list[str]:
    """Words of which the file holds the first twelve bytes, as statistics keep them, or more."""
    data = path.read_bytes()
    return [word for word in words if word[:14].encode() in data]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The helper tasks that were run."""
    ran: list[str] = []
    real = helper.run

    async def run(task, spec, **options):
        ran.append(task)
        return await real(task, spec, **options)

    monkeypatch.setattr(helper, "run", run)
    return ran


def cache_of(folder: Path, warehouse: Path) -> SnapshotCache:
    return SnapshotCache(folder, warehouse, masking_key="k" * 22, limits=Limits("500MB", 2, 120))


async def test_only_the_changed_table_is_made_anew_and_all_is_as_if_built_anew(tmp_path, tasks):
    warehouse, names = tmp_path / "team.duckdb", [f"t{n}" for n in range(TABLES)]
    words = await asyncio.to_thread(make, warehouse, [150_000] * TABLES)
    cache = cache_of(tmp_path / "cache", warehouse)
    await cache.governed(await cache.raw(), plan(names))
    tasks.clear()
    await asyncio.to_thread(
        commit, warehouse, "DELETE FROM t2 WHERE i >= 150000; UPDATE t2 SET word = 'new' WHERE i < 5"
    )
    updated = await cache.governed(await cache.raw(), plan(names))
    assert tasks == ["copy", "mask", "update"]
    anew = cache_of(tmp_path / "other", warehouse)
    built = await anew.governed(await anew.raw(), plan(names))
    assert content(updated.path, names) == content(built.path, names)
    assert updated.manifest == built.manifest
    assert updated.path.stat().st_mode & 0o777 == 0o440
    assert leaks(updated.path, words["t2"]) == []
    assert leaks(updated.path, words["t1"]) == words["t1"]


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_gone_from_a_persons_view_is_in_no_byte_of_the_next_snapshot(tmp_path, tasks, seed):
    dice = random.Random(seed)
    warehouse, names = tmp_path / "team.duckdb", [f"t{n}" for n in range(TABLES)]
    # large tables have blocks of their own, small ones share theirs
    sizes = [dice.choice([0, 10, 3_000, 130_000, 260_000]) for _ in names]
    words = await asyncio.to_thread(make, warehouse, sizes)
    cache = cache_of(tmp_path / "cache", warehouse)
    await cache.governed(await cache.raw(), plan(names))
    gone: list[str] = []
    for _round in range(3):
        for name in dice.sample(names, dice.choice([1, 1, 2])):
            if not words[name]:
                continue
            went = dice.sample(words[name], min(len(words[name]), 10))
            listed = ", ".join(f"'{word}'" for word in went)
            statement = dice.choice(
                [
                    f"DELETE FROM {name} WHERE word IN ({listed})",
                    f"UPDATE {name} SET word = 'x' WHERE word IN ({listed})",
                ]
            )
            await asyncio.to_thread(commit, warehouse, statement)
            words[name] = [word for word in words[name] if word not in went]
            gone += went
        snapshot = await cache.governed(await cache.raw(), plan(names))
        assert leaks(snapshot.path, gone) == []
        kept = {row[1] for rows in content(snapshot.path, names)[:-1] for row in rows}
        assert all(word in kept for left in words.values() for word in left)


async def test_without_the_scrubbing_former_rows_would_be_left(tmp_path, monkeypatch):
    """The control: what the tests above look for is there in a file that is only brought up to date."""
    warehouse, names = tmp_path / "team.duckdb", [f"t{n}" for n in range(TABLES)]
    words = await asyncio.to_thread(make, warehouse, [150_000] * TABLES)
    cache = cache_of(tmp_path / "cache", warehouse)
    first = await cache.governed(await cache.raw(), plan(names))
    naive = tmp_path / "naive.duckdb"
    naive.write_bytes(first.path.read_bytes())
    with duckdb.connect(str(naive)) as connection:
        connection.execute("DROP TABLE t2")
        connection.execute("CHECKPOINT")
    assert leaks(naive, words["t2"]) != []
    scrub.scrub(str(naive))
    assert leaks(naive, words["t2"]) == []
    assert content(naive, ["t0", "t1", "t3"]) == content(first.path, ["t0", "t1", "t3"])


async def test_a_wider_snapshot_of_another_plan_is_no_base(tmp_path, tasks):
    warehouse = tmp_path / "team.duckdb"
    await asyncio.to_thread(make, warehouse, [150_000] * 3)
    cache = cache_of(tmp_path / "cache", warehouse)
    raw = await cache.raw()
    await cache.governed(raw, plan(["t0", "t1", "t2"]))
    await cache.governed(raw, plan(["t0", "t1", "t2"], "i < 100"))
    assert "update" not in tasks


async def test_a_file_of_another_structure_is_not_touched(tmp_path, monkeypatch):
    warehouse = tmp_path / "team.duckdb"
    await asyncio.to_thread(make, warehouse, [10])
    before = warehouse.read_bytes()
    monkeypatch.setattr(scrub, "checksum", lambda _data: 0)
    with pytest.raises(scrub.Unscrubbable):
        scrub.scrub(str(warehouse))
    assert warehouse.read_bytes() == before
