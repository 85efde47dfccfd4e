"""Versions: every accepted text of a notebook, who brought it and when.

The newest version is the current text. Kept are the last 100, and beyond them the newest of each day (UTC). Functions
that take a `session` run inside the caller's transaction; those that take the store block.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from marimohub import contents, rows
from marimohub.notebook_errors import NoVersion
from marimohub.orm import Content, Notebook, Version

if TYPE_CHECKING:
    from marimohub.notebooks import NotebookStore

KEEP_LAST = 100
_PRUNE_AT_ONCE = 20
_DAY = 86_400


@dataclass(frozen=True)
class VersionInfo:
    """One version without its text. `kind`: create, copy, save, restore, draft or disk; `created` in POSIX seconds."""

    id: int
    author: str | None
    created: float
    hash: str
    kind: str
    current: bool


def record(
    session: Session, notebook: Notebook, text: str, digest: str, *, author: str | None, kind: str, now: float
) -> None:
    """Make `text` the current version of a notebook that is in the database, and drop versions out of keeping."""
    contents.keep(session, text, digest)
    session.add(Version(notebook_id=notebook.id, hash=digest, author=author, kind=kind, created=now))
    notebook.hash = digest
    session.flush()
    _prune(session, notebook.id)


def history(store: NotebookStore, workspace_id: int, name: str, *, now: float) -> list[VersionInfo]:
    """The versions of a notebook, newest first; a file that changed on disk is taken in before.

    Raises:
        NotFound
    """
    store.take_in(workspace_id, name, now=now)
    with store.database.transaction(write=False) as session:
        notebook = rows.find(session, workspace_id, name)
        query = select(Version).where(Version.notebook_id == notebook.id).order_by(Version.id.desc())
        return [_info(version, current=place == 0) for place, version in enumerate(session.scalars(query))]


def get(session: Session, workspace_id: int, name: str, version_id: int) -> tuple[VersionInfo, str]:
    """One version and its text.

    Raises:
        NotFound; NoVersion: this notebook has none of that id, or has it no more.
    """
    notebook = rows.find(session, workspace_id, name)
    query = (
        select(Version, Content.text)
        .join(Content, Content.hash == Version.hash)
        .where(Version.notebook_id == notebook.id, Version.id == version_id)
    )
    found = session.execute(query).one_or_none()
    if found is None:
        raise NoVersion(name)
    version, text = found
    return _info(version, current=version.id == newest(session, notebook.id).id), text


def newest(session: Session, notebook_id: int) -> VersionInfo:
    """The current version."""
    query = select(Version).where(Version.notebook_id == notebook_id).order_by(Version.id.desc()).limit(1)
    return _info(session.scalars(query).one(), current=True)


def restore(
    store: NotebookStore, workspace_id: int, name: str, version_id: int, *, user: str, now: float
) -> VersionInfo:
    """Publish the text of a version again; it becomes a new version, unless it is the current text.

    Raises:
        NotFound, NoVersion; LockLost: `user` is not the live holder; BaseChanged: the file changed on disk meanwhile.
    """
    with store.database.transaction(write=False) as session:
        text = get(session, workspace_id, name, version_id)[1]
    store.publish(workspace_id, name, text, user=user, kind="restore", now=now)
    with store.database.transaction(write=False) as session:
        return newest(session, rows.find(session, workspace_id, name).id)


def _prune(session: Session, notebook_id: int) -> None:
    # Each new version moves one over the edge of the last 100. It stays if the next newer one is of another day: then
    # it is the newest of its own. Looking at some more catches up when the numbers above change.
    query = (
        select(Version.id, Version.created, Version.hash)
        .where(Version.notebook_id == notebook_id)
        .order_by(Version.id.desc())
        .offset(KEEP_LAST - 1)
        .limit(_PRUNE_AT_ONCE)
    )
    found = session.execute(query).all()
    superseded = [older for newer, older in pairwise(found) if newer.created // _DAY == older.created // _DAY]
    if superseded:
        session.execute(delete(Version).where(Version.id.in_([version.id for version in superseded])))
        contents.drop_unused(session, {version.hash for version in superseded})


def _info(version: Version, *, current: bool) -> VersionInfo:
    return VersionInfo(version.id, version.author, version.created, version.hash, version.kind, current)
