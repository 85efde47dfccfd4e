"""Kill -9 between every two steps, and a full disk at every write: the text is the old or the new one, whole.

Each operation runs in a forked process that kills itself at step 1, at step 2, and so on until it gets through. After
each death a new store reconciles, as a hub does at its start, and file, metadata and versions must agree.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import select, text

from marimohub import locks
from marimohub.database import Database
from marimohub.files import NoSpace, text_hash
from marimohub.notebook_errors import SaveRefused
from marimohub.notebooks import NotebookStore
from marimohub.orm import Content, Draft, Notebook, Version, Workspace
from tests import faults
from tests.conftest import missing
from tests.databases import new_url

TTL = 900.0
OLD = "old = 1\n" * 8_000
NEW = "new = 2\n" * 9_000
Files = dict[str, str]


def save(store: NotebookStore, workspace: int) -> None:
    store.save(workspace, "report", NEW, user="ann", fence=1, base=text_hash(OLD), now=2.0)


def refused_save(store: NotebookStore, workspace: int) -> None:
    try:
        store.save(workspace, "report", NEW, user="bob", fence=7, base=text_hash(OLD), now=2.0)
    except SaveRefused:
        return
    raise AssertionError("a save without the lock was accepted")


def create(store: NotebookStore, workspace: int) -> None:
    store.create(workspace, "second", NEW, author="bob", email=None, now=2.0)


def recreate(store: NotebookStore, workspace: int) -> None:
    store.create(workspace, "lost", NEW, author="bob", email=None, now=2.0)


def copy(store: NotebookStore, workspace: int) -> None:
    store.copy(workspace, "report", "second", author="bob", email=None, now=2.0)


def delete(store: NotebookStore, workspace: int) -> None:
    store.delete(workspace, "free", user="ann", admin=False, now=2.0)


@dataclass(frozen=True)
class Operation:
    """`adds` and `drops` say what it makes of the files when it gets through; `drafts` what it keeps."""

    run: Callable[[NotebookStore, int], None]
    adds: Files = field(default_factory=dict)
    drops: frozenset[str] = frozenset()
    drafts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.run.__name__

    def after(self, files: Files) -> Files:
        return {name: text for name, text in {**files, **self.adds}.items() if name not in self.drops}


BEFORE = {"report": OLD, "free": OLD}
OPERATIONS = [
    Operation(save, adds={"report": NEW}),
    Operation(refused_save, drafts=(NEW,)),
    Operation(create, adds={"second": NEW}),
    Operation(recreate, adds={"lost": NEW}),
    Operation(copy, adds={"second": OLD}),
    Operation(delete, drops=frozenset({"free"})),
]


@pytest.fixture(params=OPERATIONS, ids=str)
def operation(request: pytest.FixtureRequest) -> Operation:
    assert isinstance(request.param, Operation)
    return request.param


@contextmanager
def opened(url: str, root: Path) -> Iterator[NotebookStore]:
    database = Database(url)
    try:
        yield NotebookStore(database, root)
    finally:
        database.close()


def furnish(store: NotebookStore, name: str) -> int:
    """A new workspace: `report` (locked by ann with fence 1), `free` (unlocked), `lost` (its file is gone)."""
    with store.database.transaction() as session:
        workspace = Workspace(name=name, created=0.0)
        session.add(workspace)
        session.flush()
        found = workspace.id
    for notebook in ("report", "free", "lost"):
        store.create(found, notebook, OLD, author="ann", email=None, now=0.0)
    with store.database.transaction() as session:
        assert locks.acquire(session, found, "report", "ann", now=1.0, ttl=TTL).fence == 1
    (store.folder(found) / "lost.py").unlink()
    return found


def files_in(store: NotebookStore, workspace: int) -> Files:
    return {path.name.removesuffix(".py"): path.read_text() for path in store.folder(workspace).iterdir()}


def check_agreement(store: NotebookStore, workspace: int) -> Files:
    """Files, metadata and versions say the same; returns the files."""
    # what could not be put in place is, by now, when somebody looks
    assert {info.name for info in store.list_all(workspace, now=3.0) if info.file_exists} == set(
        files_in(store, workspace)
    )
    files = files_in(store, workspace)
    with store.database.transaction(write=False) as session:
        rows = session.scalars(select(Notebook).where(Notebook.workspace_id == workspace)).all()
        assert not [row.name for row in rows if row.pending]
        # `lost` may stay what it was: a row whose file is gone
        assert {row.name for row in rows} - {"lost"} == set(files) - {"lost"}
        for row in rows:
            newest = session.scalars(
                select(Version).where(Version.notebook_id == row.id).order_by(Version.id.desc()).limit(1)
            ).one()
            assert newest.hash == row.hash
            assert text_hash(session.get_one(Content, row.hash).text) == row.hash
            if row.name in files:
                assert text_hash(files[row.name]) == row.hash
    for name, content in files.items():
        assert store.read(workspace, name, now=3.0).text == content
    return files


def drafts_in(store: NotebookStore, workspace: int) -> tuple[str, ...]:
    with store.database.transaction(write=False) as session:
        query = select(Content.text).join(Draft, Draft.hash == Content.hash).where(Draft.workspace_id == workspace)
        return tuple(session.scalars(query))


# PostgreSQL sees the same statements in the same transactions: one operation of each shape is enough
KILLED = [(operation, "sqlite") for operation in OPERATIONS] + [
    pytest.param(operation, "postgres", marks=pytest.mark.postgres)
    for operation in OPERATIONS
    if operation.run in (save, create, delete)
]


@pytest.mark.parametrize(("operation", "kind"), KILLED, ids=str)
def test_hub_killed_between_any_two_steps_leaves_the_old_or_the_new_state_whole(
    operation: Operation, kind: str, memory_folder: Path, request: pytest.FixtureRequest
) -> None:
    # in memory: a killed process loses nothing that it wrote, on whatever disk
    url, root = new_url(kind, memory_folder, request), memory_folder / "notebooks"
    with opened(url, root) as store:
        store.database.prepare()
    outcomes: dict[str, int] = {"old": 0, "new": 0}
    untouched = False
    for number in range(1, 1000):
        if not untouched:
            with opened(url, root) as store:
                workspace = furnish(store, f"w{number}")

        def work(tell: Callable[[str], None], number: int = number, workspace: int = workspace) -> None:
            with opened(url, root) as store:
                step = faults.kill_at(number, tell)
                faults.watch_files(step)
                faults.watch_database(step)
                operation.run(store, workspace)

        ended = faults.in_child(work)
        with opened(url, root) as store:
            store.reconcile()
            files = check_agreement(store, workspace)
            assert store.reconcile() == [], "a second start found something to repair"
            assert files in (BEFORE, operation.after(BEFORE)), f"after a death at step {number}, {ended.step}"
            kept = drafts_in(store, workspace)
            assert kept in ((), operation.drafts)
            untouched = files == BEFORE and kept == ()
            outcomes["old" if untouched else "new"] += 1
            if ended.status == 0:
                assert files == operation.after(BEFORE)
                assert kept == operation.drafts
                break
            assert ended.signal == signal.SIGKILL, f"step {number} failed by itself"
            if not untouched:
                # whoever held the lock works on
                store.save(workspace, "report", "on\n", user="ann", fence=1, base=text_hash(files["report"]), now=4.0)
    assert number > 10
    print(f"\n{operation} on {kind}: killed at {number - 1} points: {outcomes}")


def test_disk_full_at_any_write_is_told_and_changes_nothing(operation: Operation, memory_folder: Path) -> None:
    url, root = f"sqlite:///{memory_folder / 'hub.sqlite'}", memory_folder / "notebooks"
    with opened(url, root) as store:
        store.database.prepare()
    for number in range(1, 1000):
        with opened(url, root) as store:
            workspace = furnish(store, f"w{number}")

        def work(tell: Callable[[str], None], number: int = number, workspace: int = workspace) -> None:
            with opened(url, root) as store:
                faults.watch_files(faults.full_at(number, tell))
                try:
                    operation.run(store, workspace)
                except NoSpace as error:
                    assert "full" in error.message
                    tell("NoSpace")

        ended = faults.in_child(work)
        assert ended.status == 0
        with opened(url, root) as store:
            # without a repair at start: the hub goes on running
            files = check_agreement(store, workspace)
            if ended.step == "NoSpace":
                assert files == BEFORE
                assert drafts_in(store, workspace) == ()
                operation.run(store, workspace)
                files = check_agreement(store, workspace)
            assert files == operation.after(BEFORE)
            assert drafts_in(store, workspace) == operation.drafts
        if ended.step == "":
            return
    raise AssertionError("the operation never got through")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True).returncode:
        missing("tmpfs", "a small file system cannot be mounted here (that needs root)")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all space of a disk but `leave` bytes; returns the file that takes it."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096) == 4096:
                pass
        except OSError:
            pass
        file.truncate(max(file.tell() - leave, 0))
    return ballast


@pytest.mark.parametrize("shared", [True, False], ids=["one disk for all", "the database's own disk"])
def test_full_disk_is_told_and_the_same_call_works_once_there_is_space(
    operation: Operation, shared: bool, small_disk: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{small_disk / 'hub.sqlite'}"
    root = (small_disk if shared else tmp_path) / "notebooks"
    told = 0
    with opened(url, root) as store:
        store.database.prepare()
    for number, leave in enumerate(range(0, 720 * 1024, 48 * 1024)):
        with opened(url, root) as store:
            workspace = furnish(store, f"w{number}")
            with store.database.engine.connect() as connection:
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
            ballast = fill(small_disk, leave)
            try:
                operation.run(store, workspace)
            except NoSpace as error:
                told += 1
                assert "full" in error.message
                ballast.unlink()
                assert check_agreement(store, workspace) == BEFORE
                assert drafts_in(store, workspace) == ()
                operation.run(store, workspace)
            ballast.unlink(missing_ok=True)
            assert check_agreement(store, workspace) == operation.after(BEFORE)
            assert drafts_in(store, workspace) == operation.drafts
            for table in ("drafts", "notebooks"):
                with store.database.transaction() as session:
                    session.execute(text(f"DELETE FROM marimohub_{table}"))
            for path in store.folder(workspace).iterdir():
                path.unlink()
    assert told > 0
