"""`marimohub.snapshot`, as code in a notebook uses it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from marimohub import snapshot
from marimohub.snapshots.cache import SnapshotCache
from marimohub.snapshots.plan import ColumnPlan, Plan, TablePlan
from tests.snapshots.conftest import commit

PLAN = Plan((TablePlan("main", "t", (ColumnPlan("i", "i"),)),), (), (("table", "main.hidden", "not classified"),))


@pytest.fixture
def cache(tmp_path: Path) -> SnapshotCache:
    with duckdb.connect(str(tmp_path / "team.duckdb")) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS i, 'x' AS word FROM range(3)")
        connection.execute("CREATE TABLE hidden AS SELECT 1 AS one")
    return SnapshotCache(tmp_path / "cache", tmp_path / "team.duckdb", masking_key="k" * 22)


async def link(cache: SnapshotCache, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARIMOHUB_SNAPSHOT", str(folder / "warehouse.duckdb"))
    made = await cache.governed(await cache.raw(), PLAN)
    return await asyncio.to_thread(cache.link, made, folder)


async def test_a_notebook_reads_its_snapshot_and_what_is_in_it(cache, tmp_path, monkeypatch):
    path = await link(cache, tmp_path / "ann", monkeypatch)
    assert snapshot.path() == path
    with snapshot.connect() as connection:
        assert connection.execute("FROM t").fetchall() == [(0,), (1,), (2,)]
        assert connection.execute("SELECT current_database()").fetchone() == ("warehouse",)
        with pytest.raises(duckdb.Error):
            connection.execute("DELETE FROM t")
    about = snapshot.describe()
    assert about["governed"] is True
    assert about["tables"] == [
        {"schema": "main", "name": "t", "rows": 3, "filtered": False, "columns": [{"name": "i", "type": "BIGINT"}]}
    ]
    assert about["omitted"] == [{"kind": "table", "name": "main.hidden", "reason": "not classified"}]
    assert timedelta(0) <= snapshot.age() < timedelta(minutes=2)


async def test_a_refreshed_snapshot_is_there_while_the_former_is_still_open(cache, tmp_path, monkeypatch):
    await link(cache, tmp_path / "ann", monkeypatch)
    with snapshot.connect() as former:
        await asyncio.to_thread(commit, tmp_path / "team.duckdb", "INSERT INTO t VALUES (9, 'new')")
        await link(cache, tmp_path / "ann", monkeypatch)
        with snapshot.connect() as current:
            assert current.execute("SELECT max(i) FROM t").fetchone() == (9,)
            # a saved query may name the database
            assert current.execute("SELECT count(*) FROM warehouse.main.t").fetchone() == (4,)
        assert former.execute("SELECT max(i) FROM t").fetchone() == (2,)


def test_without_a_snapshot_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("MARIMOHUB_SNAPSHOT", raising=False)
    for call in (snapshot.path, snapshot.connect, snapshot.describe, snapshot.age):
        with pytest.raises(snapshot.NoSnapshot, match="Open this notebook from the hub"):
            call()
    monkeypatch.setenv("MARIMOHUB_SNAPSHOT", str(tmp_path / "warehouse.duckdb"))
    for call in (snapshot.path, snapshot.connect, snapshot.describe, snapshot.age):
        with pytest.raises(snapshot.NoSnapshot):
            call()


def test_it_loads_nothing_of_the_hub():
    code = "import sys, marimohub.snapshot; print([m for m in sys.modules if 'jupyterhub' in m or 'tornado' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
