"""The notebook store: .py files in a folder per workspace, and their metadata in the database.

The database accepts a text first (`hash`, `pending = true`), then the file is renamed into place, then `pending` is
cleared. A hub that dies in between finishes the write at its next start (`reconcile`). A file that somebody changed on
disk is taken in as a new version; it is never overwritten by a save that was based on another text.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from marimohub import contents, drafts, locks, rows, versions
from marimohub.database import Database
from marimohub.files import NoSpace, files_aside, remove_temporaries, set_aside, sync_folder, write_durable
from marimohub.names import check_name, is_notebook_name, is_well_formed
from marimohub.notebook_errors import (
    BaseChanged,
    DeleteLocked,
    NameTaken,
    NotAuthor,
    NotebookError,
    NotFound,
    SaveRefused,
)
from marimohub.orm import Content, Lock, Notebook, Version, Workspace
from marimohub.workspaces import Workspaces

Also = Callable[[Session], None]


@dataclass(frozen=True)
class NotebookInfo:
    """One row of the Notebooks page. Times are POSIX seconds."""

    name: str
    author: str | None
    author_email: str | None
    modified: float
    file_exists: bool
    lock: locks.LockState


@dataclass(frozen=True)
class NotebookText:
    """A notebook's text; `hash` is the base that a later save must name."""

    text: str
    hash: str
    modified: float


class NotebookStore:
    """Notebooks of all workspaces below `root`. Methods block: call them in a worker thread (`Database.run`)."""

    def __init__(self, database: Database, root: Path) -> None:
        self.database = database
        self.workspaces = Workspaces(database)
        self.root = root
        self._guards: dict[tuple[int, str], threading.Lock] = defaultdict(threading.Lock)

    def workspace_id(self, name: str) -> int:
        """The id of a workspace.

        Raises:
            NoWorkspace: there is none of that name.
        """
        return self.workspaces.id_of(name)

    def folder(self, workspace_id: int) -> Path:
        """The folder that holds a workspace's files, created on first use."""
        folder = self.root / self.workspaces.name_of(workspace_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def list_all(self, workspace_id: int, *, now: float) -> list[NotebookInfo]:
        """All notebooks, by name; files that appeared or changed on disk are taken in first."""
        folder = self.folder(workspace_id)
        files = _scan(folder)
        found = self._rows(workspace_id)
        unsettled = [notebook.name for notebook in found if notebook.pending]
        for name in unsettled:
            self._settle(workspace_id, name, now=now)
        if unsettled:
            files, found = _scan(folder), self._rows(workspace_id)
        known = {notebook.name for notebook in found}
        stale = [
            notebook.name
            for notebook in found
            if not notebook.pending and notebook.name in files and files[notebook.name] != notebook.modified
        ]
        if stale or not files.keys() <= known:
            for name in [*stale, *(files.keys() - known)]:
                self._adopt(workspace_id, folder, name, now=now)
            found = self._rows(workspace_id)
        return [
            NotebookInfo(
                notebook.name,
                notebook.author,
                notebook.author_email,
                notebook.modified,
                notebook.name in files or notebook.pending,
                locks.state_of(notebook if notebook.fence is not None else None, now),
            )
            for notebook in found
        ]

    def get(self, workspace_id: int, name: str, *, now: float) -> NotebookInfo:
        """One notebook, as in `list_all`.

        Raises:
            NotFound: there is none of that name.
        """
        folder = self.folder(workspace_id)
        with self.database.transaction(write=False) as session:
            notebook = rows.find(session, workspace_id, name)
            lock = locks.get(session, workspace_id, notebook.name, now=now)
        exists = notebook.pending or contents.is_file(folder / f"{notebook.name}.py")
        return NotebookInfo(notebook.name, notebook.author, notebook.author_email, notebook.modified, exists, lock)

    def create(
        self,
        workspace_id: int,
        name: object,
        text: str,
        *,
        author: str | None,
        email: str | None,
        now: float,
        kind: str = "create",
        also: Also | None = None,
    ) -> NotebookInfo:
        """Make a new notebook, or a new file for one whose file is missing.

        Args:
            also: done in the transaction that accepts the text.

        Raises:
            InvalidName, NameTaken, TextTooLarge, NoSpace; LockHeld if the missing file's notebook is being edited.
        """
        name = check_name(name)
        folder = self.folder(workspace_id)
        path = folder / f"{name}.py"
        digest = contents.checked_hash(text)
        with self._guard(workspace_id, name), contents.temporary(folder, text) as temporary:
            for existing in _scan(folder):
                if existing.lower() == name.lower():
                    raise NameTaken(existing)
            with self.database.transaction() as session:
                locks.hold_row(session, workspace_id, name)
                lock = locks.get(session, workspace_id, name, now=now)
                if lock.holder is not None:
                    raise locks.LockHeld(name, lock)
                # a row without its file keeps its versions and gets the new text
                notebook = session.scalar(rows.by_key(workspace_id, name))
                if notebook is None:
                    notebook = Notebook(workspace_id=workspace_id, name_key=name.lower())
                    session.add(notebook)
                elif notebook.pending:
                    raise NameTaken(notebook.name)
                notebook.name, notebook.author, notebook.author_email = name, author, email
                notebook.created = notebook.modified = now
                notebook.hash, notebook.pending = digest, True
                session.flush()
                versions.record(session, notebook, text, digest, author=author, kind=kind, now=now)
                if also:
                    also(session)
            self._place(notebook.id, temporary, path, now=now)
        return self.get(workspace_id, name, now=now)

    def copy(
        self,
        workspace_id: int,
        source: str,
        name: object,
        *,
        author: str,
        email: str | None,
        now: float,
    ) -> NotebookInfo:
        """Make a new notebook with the text of another: no lock, no outputs, the copier as its author."""
        text = self.read(workspace_id, source, now=now).text
        return self.create(workspace_id, name, text, author=author, email=email, now=now, kind="copy")

    def read(self, workspace_id: int, name: str, *, now: float) -> NotebookText:
        """The current text.

        Raises:
            NotFound, FileMissing, NotText.
        """
        folder = self.folder(workspace_id)
        notebook, accepted = self._accepted(workspace_id, name)
        if accepted is not None:
            self._settle(workspace_id, name, now=now)
            notebook, accepted = self._accepted(workspace_id, name)
        if accepted is not None:
            return NotebookText(accepted.text, notebook.hash, notebook.modified)
        path = folder / f"{notebook.name}.py"
        text, digest = contents.read_file(path, notebook.name)
        if digest != notebook.hash:
            self._adopt(workspace_id, folder, notebook.name, now=now)
        return NotebookText(text, digest, path.stat().st_mtime)

    def _accepted(self, workspace_id: int, name: str) -> tuple[Notebook, Content | None]:
        """A notebook, with its text if that is not known to be in its file."""
        with self.database.transaction(write=False) as session:
            notebook = rows.find(session, workspace_id, name)
            return notebook, session.get(Content, notebook.hash) if notebook.pending else None

    def take_in(self, workspace_id: int, name: str, *, now: float) -> None:
        """Take in a notebook's file if somebody changed it on disk.

        Raises:
            NotFound
        """
        folder = self.folder(workspace_id)
        with self.database.transaction(write=False) as session:
            notebook = rows.find(session, workspace_id, name)
        try:
            changed = (folder / f"{name}.py").stat(follow_symlinks=False).st_mtime != notebook.modified
        except OSError:
            return
        if changed:
            self._adopt(workspace_id, folder, name, now=now)

    def save(
        self, workspace_id: int, name: str, text: str, *, user: str, fence: int, base: str, now: float
    ) -> NotebookText:
        """Publish a text over the version `base`, as the live holder of `fence`.

        Raises:
            SaveRefused: not the live holder (`lock_lost`), or the notebook changed meanwhile (`base_changed`); the
                text is kept as this user's draft.
            NotFound, InvalidText, TextTooLarge, NoSpace: nothing is kept.
        """
        try:
            return self.publish(workspace_id, name, text, user=user, fence=fence, base=base, kind="save", now=now)
        except (locks.LockLost, BaseChanged) as error:
            refused = error
        except NotFound:
            if not self._was_held(workspace_id, name, fence):
                raise
            refused = locks.LockLost(name)
        raise self._refuse(workspace_id, name, text, user, base, refused, now)

    def publish(
        self,
        workspace_id: int,
        name: str,
        text: str,
        *,
        user: str,
        kind: str,
        now: float,
        fence: int | None = None,
        base: str | None = None,
        also: Also | None = None,
    ) -> NotebookText:
        """The one way in which a text gets over another: accepted in the database, then renamed into place.

        Args:
            fence: of the lock under which it was typed; None for the one that `user` holds now.
            base: hash of the text it was made from; None to take the place of whatever the hub accepted last.
            also: done in the transaction that accepts the text.

        Raises:
            LockLost: not the live holder; BaseChanged: the notebook, or its file on disk, is another than `base`.
            NotFound, InvalidText, TextTooLarge, NoSpace.
        """
        folder = self.folder(workspace_id)
        digest = contents.checked_hash(text)
        with self._guard(workspace_id, name), contents.temporary(folder, text) as temporary:
            with self.database.transaction() as session:
                notebook = rows.find(session, workspace_id, name)
                path = folder / f"{notebook.name}.py"
                if fence is None:
                    fence = locks.get(session, workspace_id, notebook.name, now=now).fence
                locks.require(session, workspace_id, notebook.name, user, fence, now=now)
                on_disk = contents.disk_hash(path)
                # nobody else is in this guard, so a pending text is one that could not be put into its file; and a
                # file that is gone can be brought back, but not by a save that takes it to be there
                behind = notebook.pending or (base is None and not os.path.lexists(path))
                # whoever sends a text again, since the answer to it was lost, has overwritten nothing
                repeated = digest == notebook.hash == on_disk
                right_base = base in (None, notebook.hash) and (on_disk == notebook.hash or behind)
                if not repeated and not right_base:
                    raise BaseChanged(notebook.name)
                if also:
                    also(session)
                if repeated:
                    return NotebookText(text, digest, notebook.modified)
                if digest != notebook.hash:
                    versions.record(session, notebook, text, digest, author=user, kind=kind, now=now)
                notebook.modified, notebook.pending = now, True
            return NotebookText(text, digest, self._place(notebook.id, temporary, path, now=now))

    def delete(self, workspace_id: int, name: str, *, user: str, admin: bool, now: float) -> None:
        """Remove the file, the metadata and all versions.

        Raises:
            NotFound; NotAuthor: not the author and not an administrator; DeleteLocked: somebody is editing it.
        """
        folder = self.folder(workspace_id)
        # the file is out of sight before the commit and gone after it: a hub that dies in between, or whose database
        # is full, leaves the notebook as it was
        with self._guard(workspace_id, name), contextlib.ExitStack() as removal, self.database.transaction() as session:
            notebook = rows.find(session, workspace_id, name)
            locks.hold_row(session, workspace_id, notebook.name)
            lock = locks.get(session, workspace_id, notebook.name, now=now)
            if not admin and notebook.author != user:
                raise NotAuthor(notebook.name)
            if lock.holder is not None:
                raise DeleteLocked(lock.holder, user)
            hashes = set(session.scalars(select(Version.hash).where(Version.notebook_id == notebook.id)))
            session.execute(delete(Notebook).where(Notebook.id == notebook.id))
            contents.drop_unused(session, hashes)
            removal.enter_context(set_aside(folder / f"{notebook.name}.py", f"{notebook.id}-{notebook.name}"))

    def reconcile(self, *, now: float | None = None) -> list[str]:
        """Finish what an earlier hub left half done, and look for what should not be; returns a sentence for each."""
        now = time.time() if now is None else now
        found = []
        with self.database.transaction(write=False) as session:
            workspaces = list(session.scalars(select(Workspace.id)))
            pending = list(session.scalars(select(Notebook).where(Notebook.pending.is_(True))))
        for workspace_id in workspaces:
            removed = remove_temporaries(self.folder(workspace_id))
            if removed:
                found.append(f"removed {removed} unfinished temporary file(s)")
            found += self._end_removals(workspace_id)
        for notebook in pending:
            if self._finish_pending(notebook.workspace_id, notebook.name, now=now):
                found.append(f'finished writing the accepted text of "{notebook.name}"')
        with self.database.transaction() as session:
            dropped = contents.drop_orphans(session)
            if dropped:
                found.append(f"removed {dropped} text(s) that no version or draft named")
            known = select(Content.hash).where(Content.hash == Notebook.hash).exists()
            for notebook in session.scalars(select(Notebook).where(~known)):
                notebook.pending = False
                found.append(f'the accepted text of "{notebook.name}" is not in the database; its file is what counts')
        return found

    def _end_removals(self, workspace_id: int) -> list[str]:
        """Put back the file of a notebook that was not deleted after all, and remove that of one that was."""
        folder, found = self.folder(workspace_id), []
        for mark, aside in files_aside(folder).items():
            number, _, name = mark.partition("-")
            with self.database.transaction(write=False) as session:
                notebook = session.get(Notebook, int(number))
            path = folder / f"{name}.py"
            if notebook is not None and notebook.name == name and not path.exists():
                os.rename(aside, path)
                found.append(f'put the file of "{name}" back, which was not deleted completely')
            else:
                aside.unlink()
                found.append(f'removed what was left of the deleted "{name}"')
        sync_folder(folder)
        return found

    def _rows(self, workspace_id: int) -> Sequence[Any]:
        """What the list needs of each notebook and its lock, as columns: objects would cost twice as much."""
        query = (
            select(
                Notebook.name,
                Notebook.author,
                Notebook.author_email,
                Notebook.modified,
                Notebook.pending,
                Lock.holder,
                Lock.fence,
                Lock.acquired,
                Lock.heartbeat,
                Lock.expires,
            )
            .outerjoin(Lock, (Lock.workspace_id == Notebook.workspace_id) & (Lock.name_key == Notebook.name_key))
            .where(Notebook.workspace_id == workspace_id)
            .order_by(Notebook.name_key)
        )
        with self.database.transaction(write=False) as session:
            return session.execute(query).all()

    def _place(self, notebook_id: int, temporary: Path, path: Path, *, now: float) -> float:
        """Put an accepted text into its file. It is accepted even if that fails: `_settle` tries again."""
        try:
            os.rename(temporary, path)
            sync_folder(path.parent)
            modified = path.stat().st_mtime
            with self.database.transaction() as session:
                row = session.get_one(Notebook, notebook_id)
                row.pending, row.modified = False, modified
        except (OSError, NoSpace, SQLAlchemyError):
            return now
        return modified

    def _settle(self, workspace_id: int, name: str, *, now: float) -> None:
        """Wait for a save that is under way; write an accepted text that could not be put into its file then."""
        with self._guard(workspace_id, name), contextlib.suppress(OSError, NoSpace):
            self._finish_pending(workspace_id, name, now=now)

    def _adopt(self, workspace_id: int, folder: Path, name: str, *, now: float) -> None:
        """Take in a file that appeared or changed on disk."""
        path = folder / f"{name}.py"
        with self._guard(workspace_id, name), self.database.transaction() as session:
            try:
                text, digest = contents.read_file(path, name)
                modified = path.stat().st_mtime
            except (OSError, NotebookError):
                return
            notebook = session.scalar(rows.by_key(workspace_id, name))
            if notebook is None:
                notebook = Notebook(workspace_id=workspace_id, name=name, name_key=name.lower(), created=modified)
                notebook.hash, notebook.modified, notebook.pending = digest, modified, False
                session.add(notebook)
                session.flush()
                versions.record(session, notebook, text, digest, author=None, kind="disk", now=now)
            elif notebook.name == name and not notebook.pending:
                notebook.modified = modified
                if notebook.hash != digest:
                    versions.record(session, notebook, text, digest, author=None, kind="disk", now=now)

    def _finish_pending(self, workspace_id: int, name: str, *, now: float) -> bool:
        """Write a text that was accepted and never reached its file; returns whether there was one."""
        with self.database.transaction(write=False) as session:
            notebook = session.scalar(rows.by_key(workspace_id, name))
            accepted = session.get(Content, notebook.hash) if notebook is not None and notebook.pending else None
        if notebook is None or accepted is None:
            return False
        path = self.folder(workspace_id) / f"{notebook.name}.py"
        with contextlib.suppress(NotebookError):
            text, digest = contents.read_file(path, notebook.name)
            if digest != accepted.hash:
                self._keep_edit(notebook.id, text, digest, accepted, now=now)
        write_durable(path, accepted.text)
        with self.database.transaction() as session:
            row = session.get_one(Notebook, notebook.id)
            row.pending, row.modified = False, path.stat().st_mtime
        return True

    def _keep_edit(self, notebook_id: int, text: str, digest: str, accepted: Content, *, now: float) -> None:
        """Keep what somebody wrote to a file after the hub died, before the accepted text is written over it."""
        with self.database.transaction() as session:
            row = session.get_one(Notebook, notebook_id)
            query = select(Version.id).where(Version.notebook_id == notebook_id, Version.hash == digest).limit(1)
            if session.scalar(query) is None:
                last = versions.newest(session, notebook_id)
                versions.record(session, row, text, digest, author=None, kind="disk", now=now)
                versions.record(session, row, accepted.text, accepted.hash, author=last.author, kind=last.kind, now=now)

    def _was_held(self, workspace_id: int, name: str, fence: int) -> bool:
        """Whether this fence was given out once for a notebook that is gone: the lock's row outlives it."""
        with self.database.transaction(write=False) as session:
            return is_well_formed(name) and 0 < fence <= locks.get(session, workspace_id, name, now=0.0).fence

    def _refuse(
        self,
        workspace_id: int,
        name: str,
        text: str,
        user: str,
        base: str,
        refused: NotebookError | locks.LockLost,
        now: float,
    ) -> SaveRefused:
        with self._guard(workspace_id, name), self.database.transaction() as session:
            draft = drafts.keep(session, workspace_id, name, text, user=user, base=base, reason=refused.code, now=now)
        if isinstance(refused, locks.LockLost):
            message = f'You no longer hold the lock on "{name}", so this was not published. It is kept as your draft.'
        else:
            message = f"{refused.message} It is kept as your draft."
        return SaveRefused(refused.code, message, draft)

    @contextmanager
    def _guard(self, workspace_id: int, name: str) -> Iterator[None]:
        if not is_well_formed(name):
            raise NotFound(name)
        with self._guards[(workspace_id, name.lower())]:
            yield


def _scan(folder: Path) -> dict[str, float]:
    """Modification time of each notebook file in `folder`, by name."""
    with os.scandir(folder) as entries:
        return {
            entry.name[:-3]: entry.stat(follow_symlinks=False).st_mtime
            for entry in entries
            if entry.name.endswith(".py") and entry.is_file(follow_symlinks=False) and is_notebook_name(entry.name[:-3])
        }
