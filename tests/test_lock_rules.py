"""The lock and save rules as a state machine: hypothesis looks for a sequence of steps that breaks one of them.

Several users work on several notebooks on a controlled clock; a model in plain Python says what must come out. After
every step the database, the files and the drafts are compared with it. Times are multiples of 1/1024 s, so that sums of
floats are exact and "just before expiry" is one such step before it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from marimohub import locks
from marimohub.database import Database
from marimohub.files import text_hash
from marimohub.notebook_errors import DeleteLocked, FileMissing, NameTaken, NotAuthor, NotFound, SaveRefused
from marimohub.notebooks import NotebookStore
from marimohub.orm import Content, Draft, Workspace
from tests.databases import new_postgres

TTL = 900.0
STEP = 1 / 1024
USERS = ["ann", "bob", "carol"]
NAMES = ["alpha", "Beta", "gamma"]
_numbers = itertools.count(1)


@dataclass
class ModelLock:
    holder: str | None = None
    fence: int = 0
    acquired: float = 0.0
    expires: float = 0.0

    def live(self, now: float) -> str | None:
        return self.holder if self.expires > now else None


class LockRules(RuleBasedStateMachine):
    """One workspace of its own per run, so that runs do not see each other in the one database."""

    database: Database
    root: Path

    @initialize()
    def begin(self) -> None:
        self.store = NotebookStore(self.database, self.root)
        with self.database.transaction() as session:
            workspace = Workspace(name=f"w{next(_numbers)}", created=0.0)
            session.add(workspace)
            session.flush()
            self.workspace = workspace.id
        self.folder = self.store.folder(self.workspace)
        self.now = 1000.0
        self.locks: dict[str, ModelLock] = defaultdict(ModelLock)
        self.authors: dict[str, str] = {}
        self.disk: dict[str, str] = {}  # text of each file
        self.known: dict[str, str] = {}  # hash of the text that the hub last accepted or took in
        self.drafts: dict[tuple[str, str, str], str] = {}
        self.given: dict[tuple[str, int], str] = {}  # who was ever given which fence
        self.highest: dict[str, int] = defaultdict(int)

    # what people do

    user = st.sampled_from(USERS)
    name = st.sampled_from(NAMES)

    @rule(user=user, name=name)
    def create(self, user: str, name: str) -> None:
        text = self.text()
        if name in self.disk:
            expected: Any = pytest.raises(NameTaken)
        elif self.locks[name].live(self.now):
            expected = pytest.raises(locks.LockHeld)
        else:
            expected = contextlib.nullcontext()
            self.disk[name], self.known[name], self.authors[name] = text, text_hash(text), user
        with expected:
            self.store.create(self.workspace, name, text, author=user, email=None, now=self.now)

    @rule(user=user, name=name)
    def acquire(self, user: str, name: str) -> None:
        if name not in self.known:
            with pytest.raises(NotFound):
                self.store.get(self.workspace, name, now=self.now)
            return
        lock = self.locks[name]
        holder = lock.live(self.now)
        if holder not in (None, user):
            with self.transaction() as session, pytest.raises(locks.LockHeld) as caught:
                locks.acquire(session, self.workspace, name, user, now=self.now, ttl=TTL)
            assert (caught.value.holder, caught.value.since) == (holder, lock.acquired)
            return
        with self.transaction() as session:
            state = locks.acquire(session, self.workspace, name, user, now=self.now, ttl=TTL)
        if holder is None:
            assert state.fence > self.highest[name], "a fence was given out twice"
            assert (name, state.fence) not in self.given
            self.given[(name, state.fence)] = user
            self.locks[name] = ModelLock(user, state.fence, self.now)
        assert state.fence == self.locks[name].fence
        self.locks[name].expires = self.now + TTL
        assert state.expires == self.now + TTL

    @rule(user=user, name=name, data=st.data())
    def heartbeat(self, user: str, name: str, data: st.DataObject) -> None:
        fence, lock = self.some_fence(name, data), self.locks[name]
        alive = lock.live(self.now) == user and lock.fence == fence
        expected: Any = contextlib.nullcontext() if alive else pytest.raises(locks.LockLost)
        with self.transaction() as session, expected:
            locks.heartbeat(session, self.workspace, name, user, fence, now=self.now, ttl=TTL)
            lock.expires = self.now + TTL

    @rule(user=user, name=name, named=st.booleans(), data=st.data())
    def release(self, user: str, name: str, named: bool, data: st.DataObject) -> None:
        fence, lock = self.some_fence(name, data) if named else None, self.locks[name]
        holds = lock.live(self.now) == user and fence in (None, lock.fence)
        expected: Any = contextlib.nullcontext() if holds else pytest.raises(locks.NotHolder)
        with self.transaction() as session, expected:
            locks.release(session, self.workspace, name, user, now=self.now, fence=fence)
            lock.holder = None

    @rule(name=name)
    def revoke(self, name: str) -> None:
        lock = self.locks[name]
        holder = lock.live(self.now)
        expected: Any = contextlib.nullcontext() if holder else pytest.raises(locks.NotLocked)
        with self.transaction() as session, expected:
            before = locks.revoke(session, self.workspace, name, now=self.now)
            assert before.holder == holder
            lock.holder = None
            lock.fence += 1

    @rule(user=user, name=name, data=st.data(), repeat=st.booleans())
    def save(self, user: str, name: str, data: st.DataObject, repeat: bool) -> None:
        text = self.disk.get(name, "") if repeat else self.text()
        fence, lock = self.some_fence(name, data), self.locks[name]
        base = data.draw(
            st.sampled_from([self.known.get(name, "0" * 64), text_hash(self.disk.get(name, "")), "1" * 64])
        )
        holds = lock.live(self.now) == user and lock.fence == fence
        unchanged = name in self.disk and (
            base == self.known.get(name) == text_hash(self.disk[name])
            # the same text once more, whatever it was based on: the answer to the first may have been lost
            or text_hash(text) == self.known.get(name) == text_hash(self.disk[name])
        )
        try:
            saved = self.store.save(self.workspace, name, text, user=user, fence=fence, base=base, now=self.now)
        except NotFound:
            assert name not in self.known and not 0 < fence <= lock.fence, "a text typed under a lock was thrown away"
        except SaveRefused as error:
            assert error.code == ("base_changed" if holds else "lock_lost")
            assert not (holds and unchanged), "the live holder's save over the right base was refused"
            self.drafts[(user, name, base)] = text
            with self.transaction() as session:
                draft = session.get_one(Draft, error.draft)
                kept = (draft.user_name, draft.notebook_name, session.get_one(Content, draft.hash).text)
            assert kept == (user, name, text)
        else:
            assert holds, "somebody who does not hold the lock has saved"
            assert unchanged, "a save has overwritten a text that it was not based on"
            assert saved.hash == text_hash(text)
            self.disk[name], self.known[name] = text, saved.hash

    @rule(user=user, name=name, admin=st.booleans())
    def delete(self, user: str, name: str, admin: bool) -> None:
        expected: Any = contextlib.nullcontext()
        if name not in self.known:
            expected = pytest.raises(NotFound)
        elif not admin and self.authors.get(name) != user:
            expected = pytest.raises(NotAuthor)
        elif self.locks[name].live(self.now):
            expected = pytest.raises(DeleteLocked)
        else:
            for facts in (self.disk, self.known, self.authors):
                facts.pop(name, None)
        with expected:
            self.store.delete(self.workspace, name, user=user, admin=admin, now=self.now)

    @rule(name=name)
    def read(self, name: str) -> None:
        if name not in self.known:
            with pytest.raises(NotFound):
                self.store.read(self.workspace, name, now=self.now)
        elif name not in self.disk:
            with pytest.raises(FileMissing):
                self.store.read(self.workspace, name, now=self.now)
        else:
            found = self.store.read(self.workspace, name, now=self.now)
            assert (found.text, found.hash) == (self.disk[name], text_hash(self.disk[name]))
            self.known[name] = found.hash

    @rule()
    def list(self) -> None:
        found = {info.name: info for info in self.store.list_all(self.workspace, now=self.now)}
        for name in self.disk:
            self.known[name] = text_hash(self.disk[name])
        assert found.keys() == self.known.keys()
        for name, info in found.items():
            assert info.file_exists == (name in self.disk)
            assert info.lock.holder == self.locks[name].live(self.now)
            assert info.author == self.authors.get(name)

    # what happens around them

    @rule(name=name, gone=st.booleans())
    def change_on_disk(self, name: str, gone: bool) -> None:
        """Somebody edits, adds or removes the file behind the hub's back."""
        path = self.folder / f"{name}.py"
        if gone:
            path.unlink(missing_ok=True)
            self.disk.pop(name, None)
        else:
            text = self.text()
            path.write_text(text)
            # two writes within one tick of the file system's clock must not look like one
            stamp = 10**18 + next(_numbers) * 10**6
            os.utime(path, ns=(stamp, stamp))
            self.disk[name] = text

    @rule(steps=st.integers(0, 1_200_000))
    def wait(self, steps: int) -> None:
        self.now += steps * STEP

    @precondition(lambda self: any(lock.live(self.now) for lock in self.locks.values()))
    @rule(data=st.data(), offset=st.sampled_from([-1, 0, 1]))
    def wait_for_expiry(self, data: st.DataObject, offset: int) -> None:
        """Up to the very moment of an expiry, one step before it, or one after."""
        live = sorted(name for name, lock in self.locks.items() if lock.live(self.now))
        self.now = max(self.now, self.locks[data.draw(st.sampled_from(live))].expires + offset * STEP)

    @rule()
    def restart(self) -> None:
        """A new hub on the same folder: nothing was interrupted, so there is nothing to repair."""
        self.store = NotebookStore(self.database, self.root)
        assert self.store.reconcile() == []

    # what always holds

    @invariant()
    def database_and_model_agree_on_every_lock(self) -> None:
        with self.transaction() as session:
            for name in NAMES:
                state = locks.get(session, self.workspace, name, now=self.now)
                model = self.locks[name]
                assert (state.holder, state.fence) == (model.live(self.now), model.fence), name
                assert state.fence >= self.highest[name], "a fence has fallen"
                self.highest[name] = state.fence

    @invariant()
    def files_are_exactly_what_was_accepted_or_written_from_outside(self) -> None:
        found = {path.name: path.read_text() for path in self.folder.iterdir()}
        assert found == {f"{name}.py": text for name, text in self.disk.items()}

    @invariant()
    def every_refused_text_is_its_users_draft(self) -> None:
        with self.transaction() as session:
            rows = session.execute(
                select(Draft.user_name, Draft.notebook_name, Draft.base_hash, Content.text)
                .join(Content, Content.hash == Draft.hash)
                .where(Draft.workspace_id == self.workspace)
            )
            assert {(user, name, base): text for user, name, base, text in rows} == self.drafts

    # helpers

    def text(self) -> str:
        return f"x = {next(_numbers)}\n"

    def some_fence(self, name: str, data: st.DataObject) -> int:
        """Mostly the present one, sometimes any that was given out for this name, or one that never was."""
        fences = [fence for given, fence in self.given if given == name]
        return data.draw(st.sampled_from([self.locks[name].fence] * 3 + [0, *fences, self.locks[name].fence + 1]))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        with self.database.transaction() as session:
            yield session

    def teardown(self) -> None:
        shutil.rmtree(getattr(self, "folder", "/nonexistent"), ignore_errors=True)


def hold(url: str, folder: Path, *, examples: int, steps: int) -> None:
    """Run the machine against the database at `url`."""
    database = Database(url)
    database.prepare()

    class Machine(LockRules):
        pass

    Machine.database, Machine.root = database, folder
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        database.close()


@pytest.mark.unit
def test_no_sequence_of_steps_breaks_a_lock_rule(memory_folder: Path) -> None:
    hold(f"sqlite:///{memory_folder / 'hub.sqlite'}", memory_folder / "notebooks", examples=60, steps=50)


@pytest.mark.postgres
def test_no_sequence_of_steps_breaks_a_lock_rule_on_postgresql(postgres: str, memory_folder: Path) -> None:
    hold(new_postgres(postgres), memory_folder / "notebooks", examples=25, steps=40)
