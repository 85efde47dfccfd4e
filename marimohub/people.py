"""What the hub keeps under a person's name, when the person goes.

Somebody else may register the name later. They must not find the drafts, notices, locks, and rights of an author that
were another's.
"""

from __future__ import annotations

import time

from sqlalchemy import update
from sqlalchemy.orm import Session

from marimohub.governance import store
from marimohub.orm import Draft, Lock, Notebook, Notice, Version


def forget(session: Session, name: str, *, now: float) -> str:
    """Put everything under a name that nobody can register; returns it. What the person made is not lost: an
    administrator of the database finds it there. Their attributes are, but for the audit entries."""
    gone = f"{name} (deleted {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))})"
    session.execute(update(Lock).where(Lock.holder == name).values(holder=None, expires=now))
    session.execute(update(Draft).where(Draft.user_name == name).values(user_name=gone))
    session.execute(update(Notice).where(Notice.user_name == name).values(user_name=gone))
    session.execute(update(Notebook).where(Notebook.author == name).values(author=gone))
    store.forget(session, name)
    session.execute(update(Version).where(Version.author == name).values(author=gone))
    return gone
