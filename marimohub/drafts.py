"""Drafts: texts that were refused on save, kept for the person who typed them until they decide what becomes of them.

There is one for each (workspace, notebook, user, base): what is typed on over one base replaces what was refused
before. A draft outlives its notebook. Nobody but its owner gets to see one, administrators included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from marimohub import contents, locks
from marimohub.notebook_errors import DraftChanged, NoDraft, NotFound
from marimohub.orm import Content, Draft, Notebook

if TYPE_CHECKING:
    from marimohub.notebooks import NotebookInfo, NotebookStore

MESSAGES = {
    "lock_lost": 'You did not hold the lock on "{name}" any more when this was saved, so it was not published.',
    "base_changed": '"{name}" had been changed by somebody else when this was saved, so it was not published.',
}


@dataclass(frozen=True)
class DraftInfo:
    """A draft without its text, as of one moment.

    `can_replace`: its owner holds the notebook's live lock. `base_hash`: the text it was made from.
    """

    id: int
    notebook: str
    created: float
    reason: str
    base_hash: str | None
    hash: str
    notebook_exists: bool
    can_replace: bool

    @property
    def message(self) -> str:
        """Why it was not published."""
        return MESSAGES[self.reason].format(name=self.notebook)


def keep(
    session: Session, workspace_id: int, notebook: str, text: str, *, user: str, base: str, reason: str, now: float
) -> int:
    """Store a refused text; returns the draft's id."""
    digest = contents.checked_hash(text)
    contents.keep(session, text, digest)
    draft = session.scalar(
        select(Draft).where(
            Draft.workspace_id == workspace_id,
            Draft.notebook_name == notebook,
            Draft.user_name == user,
            Draft.base_hash == base,
        )
    )
    if draft is None:
        draft = Draft(workspace_id=workspace_id, notebook_name=notebook, user_name=user, base_hash=base, hash=digest)
        session.add(draft)
    before = draft.hash
    draft.hash, draft.reason, draft.created = digest, reason, now
    session.flush()
    if before != digest:
        contents.drop_unused(session, {before})
    return draft.id


def of_user(session: Session, workspace_id: int, user: str, *, now: float) -> list[DraftInfo]:
    """A user's own drafts, newest first."""
    query = (
        select(Draft, Notebook.id)
        .outerjoin(Notebook, (Notebook.workspace_id == Draft.workspace_id) & (Notebook.name == Draft.notebook_name))
        .where(Draft.workspace_id == workspace_id, Draft.user_name == user)
        .order_by(Draft.created.desc(), Draft.id.desc())
    )
    return [_info(session, draft, exists is not None, now) for draft, exists in session.execute(query).all()]


def get(
    session: Session, workspace_id: int, draft_id: int, user: str, *, now: float, notebook: str | None = None
) -> tuple[DraftInfo, str]:
    """One of one's own drafts, and its text.

    Args:
        notebook: the name that it must be a draft of.

    Raises:
        NoDraft: there is none of that id, or it is somebody else's.
    """
    query = (
        select(Draft, Content.text, Notebook.id)
        .join(Content, Content.hash == Draft.hash)
        .outerjoin(Notebook, (Notebook.workspace_id == Draft.workspace_id) & (Notebook.name == Draft.notebook_name))
        .where(Draft.id == draft_id, Draft.workspace_id == workspace_id, Draft.user_name == user)
    )
    found = session.execute(query).one_or_none()
    if found is None or notebook not in (None, found[0].notebook_name):
        raise NoDraft
    draft, text, exists = found
    return _info(session, draft, exists is not None, now), text


def discard(session: Session, workspace_id: int, draft_id: int, user: str) -> None:
    """Delete one of one's own drafts.

    Raises:
        NoDraft
    """
    draft = session.get(Draft, draft_id)
    if draft is None or (draft.workspace_id, draft.user_name) != (workspace_id, user):
        raise NoDraft
    _remove(session, draft_id, draft.hash)


def copy(
    store: NotebookStore,
    workspace_id: int,
    draft_id: int,
    name: object,
    *,
    user: str,
    email: str | None,
    now: float,
) -> NotebookInfo:
    """Make a new notebook of a draft, which is gone then.

    Raises:
        NoDraft; what `NotebookStore.create` raises.
    """
    draft, text = _read(store, workspace_id, draft_id, user, now)
    return store.create(
        workspace_id,
        name,
        text,
        author=user,
        email=email,
        now=now,
        kind="copy",
        also=lambda session: _remove(session, draft.id, draft.hash),
    )


def replace(store: NotebookStore, workspace_id: int, draft_id: int, *, user: str, now: float) -> str:
    """Publish a draft as the notebook's new version, as the live holder; the draft is gone then.

    Returns:
        the notebook's name.

    Raises:
        NoDraft; NotFound: the notebook was deleted; LockLost: `user` is not the live holder; BaseChanged: the file
        changed on disk meanwhile.
    """
    draft, text = _read(store, workspace_id, draft_id, user, now)
    if not draft.notebook_exists:
        raise NotFound(draft.notebook)
    store.publish(
        workspace_id,
        draft.notebook,
        text,
        user=user,
        kind="draft",
        now=now,
        also=lambda session: _remove(session, draft.id, draft.hash),
    )
    return draft.notebook


def _read(store: NotebookStore, workspace_id: int, draft_id: int, user: str, now: float) -> tuple[DraftInfo, str]:
    with store.database.transaction(write=False) as session:
        return get(session, workspace_id, draft_id, user, now=now)


def _remove(session: Session, draft_id: int, digest: str) -> None:
    gone = session.execute(delete(Draft).where(Draft.id == draft_id, Draft.hash == digest).returning(Draft.id)).all()
    if not gone:
        raise DraftChanged
    contents.drop_unused(session, {digest})


def _info(session: Session, draft: Draft, exists: bool, now: float) -> DraftInfo:
    lock = locks.get(session, draft.workspace_id, draft.notebook_name, now=now)
    return DraftInfo(
        draft.id,
        draft.notebook_name,
        draft.created,
        draft.reason,
        draft.base_hash,
        draft.hash,
        notebook_exists=exists,
        can_replace=exists and lock.held_by(draft.user_name),
    )
