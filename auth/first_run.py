"""The one-time link by which the first administrator comes in.

Only the SHA-256 of the token is stored. A link works once, for an hour, and a newer one makes older ones worthless.
"""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import delete, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from marimohub.orm import SetupLink

LINK_TTL = 3600.0  # seconds


def issue(session: Session, *, now: float) -> str:
    """Make a new link token; all earlier ones stop working."""
    token = secrets.token_urlsafe(32)
    session.execute(delete(SetupLink).where(SetupLink.used.is_(None)))
    session.add(SetupLink(digest=_digest(token), created=now, expires=now + LINK_TTL))
    return token


def valid(session: Session, token: str, *, now: float) -> bool:
    """Whether the link could be used now."""
    condition = (SetupLink.digest == _digest(token)) & SetupLink.used.is_(None) & (SetupLink.expires > now)
    return session.scalar(select(SetupLink.id).where(condition)) is not None


def consume(session: Session, token: str, *, now: float) -> bool:
    """Use the link up; of several simultaneous calls one gets True."""
    condition = (SetupLink.digest == _digest(token)) & SetupLink.used.is_(None) & (SetupLink.expires > now)
    result = session.execute(
        update(SetupLink).where(condition).values(used=now).execution_options(synchronize_session=False)
    )
    assert isinstance(result, CursorResult)
    return bool(result.rowcount == 1)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
