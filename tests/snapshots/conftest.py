"""A real writer process and small real warehouses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest

from marimohub.snapshots import helper
from marimohub.snapshots.cache import BUILD_PREFIX, Snapshot, SnapshotCache
from marimohub.snapshots.plan import ColumnPlan, Plan, TablePlan

WRITER = Path(__file__).with_name("writer.py")


class Writer:
    """A running writer.py. `committed` is the number of the last ledger commit that had returned."""

    def __init__(self, path: Path, mode: str) -> None:
        self.path = path
        self.progress = path.with_suffix(".progress")
        self.process = subprocess.Popen(
            [sys.executable, str(WRITER), str(path), str(self.progress), mode],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def committed(self) -> int:
        return int.from_bytes(self.progress.read_bytes()[:8], "little")

    def close(self) -> None:
        """End it in the orderly way, with DuckDB's checkpoint at the end."""
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(30)
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start_writer() -> Iterator[Callable[[Path, str], Writer]]:
    running: list[Writer] = []

    def start(path: Path, mode: str) -> Writer:
        running.append(Writer(path, mode))
        return running[-1]

    yield start
    for writer in running:
        writer.kill()


@pytest.fixture
def warehouse(tmp_path: Path) -> Path:
    """A checkpointed database that nobody has open, with 1,000 rows in `t`."""
    path = tmp_path / "live" / "team.duckdb"
    path.parent.mkdir()
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS i FROM range(1000)")
    return path


def commit(path: Path, statement: str) -> None:
    """Run one statement in a process of its own, so that this one never opens the live file with DuckDB."""
    code = f"import duckdb; duckdb.connect({str(path)!r}).execute({statement!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """Open a copy read only and ask."""
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def cache(warehouse: Path, tmp_path: Path) -> SnapshotCache:
    return SnapshotCache(tmp_path / "cache", warehouse, deadline=20)


@dataclass
class Helpers:
    """Helper processes that were started: their tasks, the processes, and the tables they were given."""

    tasks: list[str] = field(default_factory=list)
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    tables: list[list[str]] = field(default_factory=list)

    def of(self, task: str) -> list[list[str]]:
        """The tables that the processes of one task were given, in order."""
        return [names for done, names in zip(self.tasks, self.tables, strict=True) if done == task]

    async def started(self, task: str) -> asyncio.subprocess.Process:
        """The process of a task, once there is one and it had a moment."""
        while len(self.processes) < len(self.tasks) or task not in self.tasks:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        return self.processes[self.tasks.index(task)]


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> Helpers:
    """The helper processes that were started."""
    seen = Helpers()
    start, run = asyncio.create_subprocess_exec, helper.run

    async def note_start(*arguments, **options):
        seen.processes.append(await start(*arguments, **options))
        return seen.processes[-1]

    async def note_run(task, spec, **options):
        seen.tasks.append(task)
        seen.tables.append([table.get("name") or table["plan"]["name"] for table in spec.get("tables", ())])
        return await run(task, spec, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", note_start)
    monkeypatch.setattr(helper, "run", note_run)
    return seen


def hold(warehouse: Path) -> subprocess.Popen:
    """A writer that seems to be in a checkpoint for ever: a copy waits until it is let go."""
    code = f"import duckdb, sys; c = duckdb.connect({str(warehouse)!r}); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    Path(f"{warehouse}.wal.checkpoint").touch()
    return process


def let_go(warehouse: Path, holder: subprocess.Popen) -> None:
    Path(f"{warehouse}.wal.checkpoint").unlink(missing_ok=True)
    holder.kill()
    holder.wait()


def builds(cache: SnapshotCache) -> list[Path]:
    return list(cache.root.glob(f"{BUILD_PREFIX}*"))


def stored(cache: SnapshotCache) -> list[str]:
    """Every file of the cache's shelves, as `shelf/name`."""
    return sorted(f"{path.parent.name}/{path.name}" for path in cache.root.glob("*/*") if path.parent.name != "linked")


async def settled(cache: SnapshotCache) -> None:
    """Wait for what the cache does while nobody waits."""
    await asyncio.gather(*cache._background)


def plan(*tables: str, add: int = 1) -> Plan:
    """A plan that shows `i + add` of each table as `i`."""
    return Plan(tuple(TablePlan("main", name, (ColumnPlan("i", f'"i" + {add}'),)) for name in tables))


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


async def governed(cache: SnapshotCache, add: int = 1) -> Snapshot:
    return await cache.governed(await cache.raw(), plan("t", add=add))


async def next_one(cache: SnapshotCache, add: int = 1) -> Snapshot:
    """After one more commit."""
    await asyncio.to_thread(commit, cache.warehouse, "INSERT INTO t VALUES (1)")
    return await governed(cache, add)
