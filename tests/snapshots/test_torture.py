"""Copies of a file under a writer that does everything a writer can do, on each kind of file system.

TORTURE_COPIES asks for more copies than the few of a usual run: 500 means 500 on the file system of the temporary
folder and 200 on each of the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from marimohub.snapshots import source
from tests.snapshots.mounts import btrfs, xfs

__all__ = ["btrfs", "xfs"]

PROGRAM = str(Path(__file__).with_name("torture_writer.py"))
COPIES = int(os.environ.get("TORTURE_COPIES", "20"))
# A copy without the protocol is bad in one of five tries or so.
NAIVE_LIMIT = 400


class Torturer:
    """A running writer, whose commits can be counted while it works."""

    def __init__(self, path: Path, notes: Path) -> None:
        self.path = path
        self.progress = notes / "progress"
        self.errors = notes / "errors"
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, PROGRAM, "write", str(path), str(self.progress)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", self.errors.read_text()

    def committed(self) -> list[int]:
        """The numbers of the last commits that have returned: ledger, bulk, stock."""
        data = self.progress.read_bytes()
        return [int.from_bytes(data[at : at + 8], "little") for at in (0, 8, 16)]

    def goes_on(self, since: int) -> bool:
        """Whether it commits to the ledger again, at once or soon."""
        end = time.monotonic() + 20
        while self.committed()[0] <= since and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        return self.committed()[0] > since

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0, self.errors.read_text()


class Checker:
    """A process that looks at copies, started again when a bad one has ended it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def faults(self, path: Path, least: list[int]) -> list[str]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, PROGRAM, "check"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(path), least]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            status = self.process.wait()
            self.close()
            return [f"ended its reader with status {status}"]
        return list(json.loads(answer))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture
def checker() -> Iterator[Checker]:
    checker = Checker()
    yield checker
    checker.close()


def naive_faults(live: Path, folder: Path, checker: Checker, least: list[int]) -> list[str]:
    """What is wrong with a copy as one would make it without thinking."""
    folder.mkdir()
    copy = folder / "naive.duckdb"
    shutil.copyfile(live, copy)
    if os.path.exists(f"{live}.wal"):
        with contextlib.suppress(FileNotFoundError):  # a checkpoint has just removed it
            shutil.copyfile(f"{live}.wal", f"{copy}.wal")
    found = checker.faults(copy, least)
    shutil.rmtree(folder)
    return found


@pytest.mark.parametrize("kind", ["tmp_path", "xfs", "btrfs"])
def test_no_copy_under_a_torturing_writer_is_ever_wrong(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, checker: Checker
) -> None:
    folder = request.getfixturevalue(kind)
    copies = COPIES if kind == "tmp_path" else COPIES * 2 // 5 if COPIES >= 500 else COPIES // 2
    live = folder / "live" / "team.duckdb"
    live.parent.mkdir()
    writer = Torturer(live, tmp_path)
    methods: Counter[str] = Counter()
    naive: Counter[str] = Counter()
    seconds: list[float] = []
    attempts = folded = tries = 0
    try:
        assert writer.goes_on(3)
        for number in range(copies):
            least = writer.committed()
            place = folder / f"copy{number}"
            place.mkdir()
            result = source.copy(live, place / "warehouse.duckdb", deadline=30, sync=number % 2 == 0)
            assert writer.goes_on(least[0]), f"the writer was stopped: {writer.errors.read_text()}"
            assert os.listdir(place) == ["warehouse.duckdb"]
            assert result.path.stat().st_mode & 0o7777 == 0o440
            assert checker.faults(result.path, least) == []
            assert os.listdir(place) == ["warehouse.duckdb"]
            shutil.rmtree(place)
            methods[result.method] += 1
            attempts += result.attempts
            folded += result.wal_bytes > 0
            seconds.append(result.seconds)
            if number % 3 == 0:
                tries += 1
                naive.update(_kinds(naive_faults(live, folder / "naive", checker, writer.committed())))
        while not naive and tries < NAIVE_LIMIT:
            tries += 1
            naive.update(_kinds(naive_faults(live, folder / "naive", checker, writer.committed())))
        done = writer.committed()
        writer.close()
    finally:
        writer.process.kill()
        writer.process.wait()
    print(
        f"\n{kind}: {copies} copies of {live.stat().st_size / 1e6:.0f} MB, none wrong, by {dict(methods)}, "
        f"{attempts - copies} begun again, {folded} with a log, median {statistics.median(seconds) * 1000:.0f} ms; "
        f"{tries} naive copies, {naive.total()} wrong: {dict(naive)}; commits {done}"
    )
    assert folded > copies / 10, "the log was hardly ever part of it: too little was tested"
    assert naive, "no naive copy was wrong: this writer proves nothing"


def _kinds(faults: list[str]) -> list[str]:
    """At most one entry per copy, without its figures."""
    return [re.split(r"[:(\d]", faults[0])[0].strip()] if faults else []


@pytest.mark.unit
def test_a_copy_that_may_be_lost_in_a_power_failure_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a log to fold in, too, for which DuckDB writes the copy; `strace` would show that it does not sync it."""
    live = tmp_path / "live.duckdb"
    code = (
        f"import duckdb, os; c = duckdb.connect({str(live)!r}); c.execute('CREATE TABLE t AS SELECT 5 AS i');"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert os.path.exists(f"{live}.wal")
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", note)
    source.copy(live, tmp_path / "lazy.duckdb", sync=False)
    assert synced == []
    source.copy(live, tmp_path / "safe.duckdb")
    assert [path.startswith(f"{tmp_path}/.safe.duckdb.") for path in synced] == [True, False]
    assert synced[1] == str(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "marimohub.snapshots", "copy", "--no-sync", str(live), str(tmp_path / "told.duckdb")],
        check=True,
    )
    for name in ("lazy", "safe", "told"):
        with duckdb.connect(str(tmp_path / f"{name}.duckdb"), read_only=True) as connection:
            assert connection.execute("SELECT i FROM t").fetchall() == [(5,)]
        assert (tmp_path / f"{name}.duckdb").stat().st_mode & 0o7777 == 0o440
        assert not os.path.exists(tmp_path / f"{name}.duckdb.wal")


@pytest.mark.unit
def test_duckdbs_compiled_module_is_what_its_package_shows() -> None:
    """`source` leaves out the package around it, which takes long to import."""
    module = source._duckdb()
    assert module.__name__ == "_duckdb"
    assert module.Error is duckdb.Error
    assert module.connect is duckdb.connect
    with module.connect(config=source._FOLDING) as connection:
        assert connection.execute("SELECT current_setting('fsync_mode')").fetchone() == ("NONE",)
