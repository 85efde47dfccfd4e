"""Force unlock: an administrator takes somebody's lock away, and that person is told."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from marimohub import locks, rows
from marimohub.orm import AuditEntry, Notice

NOTICE = "notebook_lock_revoked"


@dataclass(frozen=True)
class Revoked:
    """Who lost their lock, and the notice that waits for them until they dismiss it."""

    holder: str
    notice: int
    text: str


def force_unlock(session: Session, workspace_id: int, name: str, *, actor: str, now: float) -> Revoked:
    """Revoke the live lock on a notebook, leave its holder a notice, and write the audit entry.

    Raises:
        NotFound; NotLocked: nobody holds it.
    """
    notebook = rows.find(session, workspace_id, name)
    before = locks.revoke(session, workspace_id, notebook.name, now=now)
    assert before.holder is not None
    text = f'Your lock on "{notebook.name}" has been revoked by an administrator.'
    notice = Notice(user_name=before.holder, kind=NOTICE, text=text, created=now)
    session.add(notice)
    session.add(AuditEntry(created=now, actor=actor, action="force_unlock", target=notebook.name, detail=before.holder))
    session.flush()
    return Revoked(before.holder, notice.id, text)
