"""The notebook store: .py files in a folder per workspace, and their metadata in the database.

The database accepts a text first (`hash`, `pending = true`), then the file is renamed into place, then `pending` is
cleared. A hub that dies in between finishes the write at its next start (`reconcile`). A file that somebody changed on
disk is taken in as a new version; it is never overwritten by a save that was based on another text.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Select, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from marimohub import locks
from marimohub.database import Database
from marimohub.files import (
    NoSpace,
    read_text,
    remove_temporaries,
    sync_folder,
    text_hash,
    write_durable,
    write_temporary,
)
from marimohub.names import check_name, is_notebook_name
from marimohub.notebook_errors import (
    MAX_TEXT_BYTES,
    BaseChanged,
    DeleteLocked,
    FileMissing,
    InvalidText,
    NameTaken,
    NotAuthor,
    NotebookError,
    NotFound,
    NotText,
    NoWorkspace,
    SaveRefused,
    TextTooLarge,
)
from marimohub.orm import Content, Draft, Lock, Notebook, Version, Workspace


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
        self.root = root
        self._guards: dict[tuple[int, str], threading.Lock] = defaultdict(threading.Lock)

    def workspace_id(self, name: str) -> int:
        """The id of a workspace.

        Raises:
            NoWorkspace: there is none of that name.
        """
        with self.database.transaction(write=False) as session:
            found = session.scalar(select(Workspace.id).where(Workspace.name == name))
        if found is None:
            raise NoWorkspace(name)
        return found

    def folder(self, workspace_id: int) -> Path:
        """The folder that holds a workspace's files, created on first use."""
        with self.database.transaction(write=False) as session:
            workspace = session.get_one(Workspace, workspace_id)
        folder = self.root / workspace.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def list_all(self, workspace_id: int, *, now: float) -> list[NotebookInfo]:
        """All notebooks, by name; files that appeared or changed on disk are taken in first."""
        folder = self.folder(workspace_id)
        files = _scan(folder)
        found = self._rows(workspace_id)
        known = {notebook.name for notebook, _ in found}
        stale = [
            notebook.name
            for notebook, _ in found
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
                locks.state_of(lock, now),
            )
            for notebook, lock in found
        ]

    def get(self, workspace_id: int, name: str, *, now: float) -> NotebookInfo:
        """One notebook, as in `list_all`.

        Raises:
            NotFound: there is none of that name.
        """
        folder = self.folder(workspace_id)
        with self.database.transaction(write=False) as session:
            notebook = _find(session, workspace_id, name)
            lock = locks.get(session, workspace_id, notebook.name, now=now)
        exists = (folder / f"{notebook.name}.py").is_file() or notebook.pending
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
    ) -> NotebookInfo:
        """Make a new notebook, or a new file for one whose file is missing.

        Raises:
            InvalidName, NameTaken, TextTooLarge, NoSpace; LockHeld if the missing file's notebook is being edited.
        """
        name = check_name(name)
        folder = self.folder(workspace_id)
        path = folder / f"{name}.py"
        digest = _checked_hash(text)
        with self._guard(workspace_id, name), _temporary(folder, text) as temporary:
            for existing in _scan(folder):
                if existing.lower() == name.lower():
                    raise NameTaken(existing)
            with _full_disk(), self.database.transaction() as session:
                locks.hold_row(session, workspace_id, name)
                lock = locks.get(session, workspace_id, name, now=now)
                if lock.holder is not None:
                    raise locks.LockHeld(name, lock)
                # a row without its file keeps its versions and gets the new text
                notebook = session.scalar(_by_key(workspace_id, name))
                if notebook is None:
                    notebook = Notebook(workspace_id=workspace_id, name_key=name.lower())
                    session.add(notebook)
                notebook.name, notebook.author, notebook.author_email = name, author, email
                notebook.created = notebook.modified = now
                notebook.hash, notebook.pending = digest, True
                session.flush()
                _record(session, notebook, text, digest, author, kind, now)
            self._place(notebook.id, temporary, path)
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
        with self.database.transaction(write=False) as session:
            notebook = _find(session, workspace_id, name)
            pending_text = session.get_one(Content, notebook.hash).text if notebook.pending else None
        if pending_text is not None:
            return NotebookText(pending_text, notebook.hash, notebook.modified)
        text = _read(folder / f"{notebook.name}.py", notebook.name)
        digest = text_hash(text)
        if digest != notebook.hash:
            self._adopt(workspace_id, folder, notebook.name, now=now)
        return NotebookText(text, digest, (folder / f"{notebook.name}.py").stat().st_mtime)

    def save(
        self, workspace_id: int, name: str, text: str, *, user: str, fence: int, base: str, now: float
    ) -> NotebookText:
        """Publish a text over the version `base`, as the live holder of `fence`.

        Raises:
            SaveRefused: not the live holder (`lock_lost`), or the notebook changed meanwhile (`base_changed`); the
                text is kept as this user's draft.
            NotFound, TextTooLarge, NoSpace: nothing is kept.
        """
        folder = self.folder(workspace_id)
        digest = _checked_hash(text)
        with self._guard(workspace_id, name), _temporary(folder, text) as temporary:
            refused: NotebookError | locks.LockLost
            try:
                with _full_disk(), self.database.transaction() as session:
                    notebook = _find(session, workspace_id, name)
                    path = folder / f"{notebook.name}.py"
                    locks.require(session, workspace_id, notebook.name, user, fence, now=now)
                    if base != notebook.hash or _disk_hash(path) != notebook.hash:
                        raise BaseChanged(notebook.name)
                    if digest == notebook.hash:
                        return NotebookText(text, digest, notebook.modified)
                    _record(session, notebook, text, digest, user, "save", now)
                    notebook.hash, notebook.modified, notebook.pending = digest, now, True
                modified = self._place(notebook.id, temporary, path)
                return NotebookText(text, digest, modified)
            except (locks.LockLost, BaseChanged) as error:
                refused = error
        raise self._refuse(workspace_id, name, text, user, base, refused, now)

    def delete(self, workspace_id: int, name: str, *, user: str, admin: bool, now: float) -> None:
        """Remove the file, the metadata and all versions.

        Raises:
            NotFound; NotAuthor: not the author and not an administrator; DeleteLocked: somebody is editing it.
        """
        folder = self.folder(workspace_id)
        with self._guard(workspace_id, name), self.database.transaction() as session:
            notebook = _find(session, workspace_id, name)
            locks.hold_row(session, workspace_id, notebook.name)
            lock = locks.get(session, workspace_id, notebook.name, now=now)
            if not admin and notebook.author != user:
                raise NotAuthor(notebook.name)
            if lock.holder is not None:
                raise DeleteLocked(lock.holder, user)
            hashes = set(session.scalars(select(Version.hash).where(Version.notebook_id == notebook.id)))
            session.execute(delete(Notebook).where(Notebook.id == notebook.id))
            _drop_unused(session, hashes)
            # the file goes before the commit: a hub that dies here leaves a "missing file" row to delete again, not a
            # notebook that comes back
            (folder / f"{notebook.name}.py").unlink(missing_ok=True)
            sync_folder(folder)

    def reconcile(self) -> list[str]:
        """Finish what an earlier hub left half done; returns one sentence per repair."""
        repairs = []
        with self.database.transaction(write=False) as session:
            workspaces = list(session.scalars(select(Workspace.id)))
            pending = list(
                session.execute(
                    select(Notebook, Content.text)
                    .join(Content, Content.hash == Notebook.hash)
                    .where(Notebook.pending.is_(True))
                )
            )
        for workspace_id in workspaces:
            removed = remove_temporaries(self.folder(workspace_id))
            if removed:
                repairs.append(f"removed {removed} unfinished temporary file(s)")
        for notebook, text in pending:
            path = self.folder(notebook.workspace_id) / f"{notebook.name}.py"
            write_durable(path, text)
            with self.database.transaction() as session:
                row = session.get_one(Notebook, notebook.id)
                row.pending, row.modified = False, path.stat().st_mtime
            repairs.append(f'finished writing the accepted text of "{notebook.name}"')
        return repairs

    def _rows(self, workspace_id: int) -> list[tuple[Notebook, Lock | None]]:
        with self.database.transaction(write=False) as session:
            query = (
                select(Notebook, Lock)
                .outerjoin(
                    Lock,
                    (Lock.workspace_id == Notebook.workspace_id) & (Lock.name_key == Notebook.name_key),
                )
                .where(Notebook.workspace_id == workspace_id)
                .order_by(Notebook.name_key)
            )
            return [(notebook, lock) for notebook, lock in session.execute(query)]

    def _place(self, notebook_id: int, temporary: Path, path: Path) -> float:
        os.rename(temporary, path)
        sync_folder(path.parent)
        modified = path.stat().st_mtime
        with self.database.transaction() as session:
            row = session.get_one(Notebook, notebook_id)
            row.pending, row.modified = False, modified
        return modified

    def _adopt(self, workspace_id: int, folder: Path, name: str, *, now: float) -> None:
        """Take in a file that appeared or changed on disk."""
        path = folder / f"{name}.py"
        with self._guard(workspace_id, name), self.database.transaction() as session:
            try:
                text, modified = read_text(path), path.stat().st_mtime
            except (OSError, UnicodeDecodeError):
                return
            digest = text_hash(text)
            notebook = session.scalar(_by_key(workspace_id, name))
            if notebook is None:
                notebook = Notebook(
                    workspace_id=workspace_id,
                    name=name,
                    name_key=name.lower(),
                    created=modified,
                    modified=modified,
                    hash=digest,
                    pending=False,
                )
                session.add(notebook)
                session.flush()
                _record(session, notebook, text, digest, None, "disk", now)
            elif notebook.name == name and not notebook.pending:
                notebook.modified = modified
                if notebook.hash != digest:
                    _record(session, notebook, text, digest, None, "disk", now)
                    notebook.hash = digest

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
        digest = text_hash(text)
        with _full_disk(), self.database.transaction() as session:
            notebook = _find(session, workspace_id, name)
            _keep(session, text, digest)
            # successive saves over the same base supersede each other: one draft grows, not one per autosave
            draft = session.scalar(
                select(Draft).where(
                    Draft.workspace_id == workspace_id,
                    Draft.notebook_name == notebook.name,
                    Draft.user_name == user,
                    Draft.base_hash == base,
                )
            )
            if draft is None:
                draft = Draft(workspace_id=workspace_id, notebook_name=notebook.name, user_name=user, base_hash=base)
                session.add(draft)
            draft.hash, draft.reason, draft.created = digest, refused.code, now
            session.flush()
            draft_id = draft.id
        if isinstance(refused, locks.LockLost):
            message = f'You no longer hold the lock on "{name}", so this was not published. It is kept as your draft.'
        else:
            message = f"{refused.message} It is kept as your draft."
        return SaveRefused(refused.code, message, draft_id)

    @contextmanager
    def _guard(self, workspace_id: int, name: str) -> Iterator[None]:
        with self._guards[(workspace_id, name.lower())]:
            yield


def _by_key(workspace_id: int, name: str) -> Select[Notebook]:
    return select(Notebook).where(Notebook.workspace_id == workspace_id, Notebook.name_key == name.lower())


def _find(session: Session, workspace_id: int, name: str) -> Notebook:
    notebook = session.scalar(_by_key(workspace_id, name))
    if notebook is None or notebook.name != name:
        raise NotFound(name)
    return notebook


def _scan(folder: Path) -> dict[str, float]:
    """Modification time of each notebook file in `folder`, by name."""
    with os.scandir(folder) as entries:
        return {
            entry.name[:-3]: entry.stat(follow_symlinks=False).st_mtime
            for entry in entries
            if entry.name.endswith(".py") and entry.is_file(follow_symlinks=False) and is_notebook_name(entry.name[:-3])
        }


def _read(path: Path, name: str) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise FileMissing from error
    except UnicodeDecodeError as error:
        raise NotText(name) from error


def _disk_hash(path: Path) -> str | None:
    try:
        return text_hash(read_text(path))
    except (OSError, UnicodeDecodeError):
        return None


def _checked_hash(text: str) -> str:
    if "\0" in text:
        raise InvalidText
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidText from error
    if size > MAX_TEXT_BYTES:
        raise TextTooLarge
    return text_hash(text)


def _keep(session: Session, text: str, digest: str) -> None:
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    session.execute(insert(Content).values(hash=digest, text=text).on_conflict_do_nothing())


def _record(
    session: Session, notebook: Notebook, text: str, digest: str, author: str | None, kind: str, now: float
) -> None:
    _keep(session, text, digest)
    session.add(Version(notebook_id=notebook.id, hash=digest, author=author, kind=kind, created=now))


def _drop_unused(session: Session, hashes: set[str]) -> None:
    """Remove texts that no version or draft names any more."""
    used = set(session.scalars(select(Version.hash).where(Version.hash.in_(hashes))))
    used |= set(session.scalars(select(Draft.hash).where(Draft.hash.in_(hashes))))
    session.execute(delete(Content).where(Content.hash.in_(hashes - used)))


@contextmanager
def _temporary(folder: Path, text: str) -> Iterator[Path]:
    path = write_temporary(folder, text)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        if "full" in str(error.orig):
            raise NoSpace from error
        raise
