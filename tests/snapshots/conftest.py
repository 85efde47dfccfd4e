"""A real writer process and small real warehouses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from marimohub.snapshots.cache import BUILD_PREFIX, SnapshotCache

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


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.subprocess.Process]:
    """The helper processes that were started."""
    started: list[asyncio.subprocess.Process] = []
    real = asyncio.create_subprocess_exec

    async def start(*arguments, **options):
        started.append(await real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    return started


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
