"""Who may edit a notebook: acquire, heartbeat, release, revoke.

Each change is one conditional UPDATE, so two simultaneous requests cannot both win, on SQLite or PostgreSQL. Expiry is
a rule at read time (`expires <= now` means free), so a hub that was down needs no clean-up. The fence of a notebook
name only ever rises: a text published with an older fence is refused, whoever sends it.

All functions run inside the caller's transaction; `now` and `ttl` are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Update, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from marimohub.orm import Lock

# By far the most frequent statement of all: built once, and it tells what it made.
_RENEW = (
    update(Lock)
    .where(
        Lock.workspace_id == bindparam("workspace"),
        Lock.name_key == bindparam("key"),
        Lock.holder == bindparam("user"),
        Lock.fence == bindparam("given"),
        Lock.expires > bindparam("now"),
    )
    .values(heartbeat=bindparam("now"), expires=bindparam("until"))
    .returning(Lock.acquired)
    .execution_options(synchronize_session=False)
)


@dataclass(frozen=True)
class LockState:
    """A lock as of one moment. `holder` is None when nobody holds it at that moment."""

    holder: str | None
    fence: int
    acquired: float
    heartbeat: float
    expires: float

    def held_by(self, user: str) -> bool:
        """Whether `user` is the live holder."""
        return self.holder is not None and self.holder == user


class LockError(Exception):
    """A lock stands in the way; `message` tells the user what to do."""

    code = "lock_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class LockHeld(LockError):
    """Somebody else is editing."""

    code = "lock_held"

    def __init__(self, name: str, state: LockState) -> None:
        super().__init__(
            f'"{name}" is locked by {state.holder}. Wait until they release it, or make a copy to work on.'
        )
        self.holder = state.holder
        self.since = state.acquired


class LockLost(LockError):
    """The caller is not, or no longer, the live holder of this fence."""

    code = "lock_lost"

    def __init__(self, name: str) -> None:
        super().__init__(
            f'You no longer hold the lock on "{name}". Open it again from the Notebooks page to go on editing.'
        )


class NotHolder(LockError):
    """A release of somebody else's lock, or of none."""

    code = "not_holder"

    def __init__(self, name: str) -> None:
        super().__init__(f'You do not hold the lock on "{name}".')


class NotLocked(LockError):
    """A force unlock of a notebook that nobody holds."""

    code = "not_locked"

    def __init__(self, name: str) -> None:
        super().__init__(f'Nobody is editing "{name}".')


def state_of(row: Lock | Row[Any] | None, now: float) -> LockState:
    """The lock that a row, or its columns, means at `now`."""
    if row is None:
        return LockState(None, 0, 0.0, 0.0, 0.0)
    live = row.holder is not None and row.expires > now
    return LockState(row.holder if live else None, row.fence, row.acquired, row.heartbeat, row.expires)


def get(session: Session, workspace_id: int, name: str, *, now: float) -> LockState:
    """The lock on a notebook name at `now`."""
    return state_of(session.get(Lock, (workspace_id, name.lower()), populate_existing=True), now)


def hold_row(session: Session, workspace_id: int, name: str) -> None:
    """Make sure that the name's row exists, and keep it from other transactions until this one ends."""
    values = {
        "workspace_id": workspace_id,
        "name_key": name.lower(),
        "fence": 0,
        "acquired": 0.0,
        "heartbeat": 0.0,
        "expires": 0.0,
    }
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    session.execute(insert(Lock).values(values).on_conflict_do_nothing())
    session.execute(
        select(Lock.fence).where(Lock.workspace_id == workspace_id, Lock.name_key == name.lower()).with_for_update()
    )


def acquire(session: Session, workspace_id: int, name: str, user: str, *, now: float, ttl: float) -> LockState:
    """Take the lock, or continue one's own live lock with its fence.

    Raises:
        LockHeld: another user holds it; carries who and since when.
    """
    hold_row(session, workspace_id, name)
    taken = _change(
        session,
        workspace_id,
        name,
        (Lock.holder.is_(None)) | (Lock.expires <= now),
        holder=user,
        fence=Lock.fence + 1,
        acquired=now,
        heartbeat=now,
        expires=now + ttl,
    )
    if not taken:
        continued = _change(
            session,
            workspace_id,
            name,
            (Lock.holder == user) & (Lock.expires > now),
            heartbeat=now,
            expires=now + ttl,
        )
        if not continued:
            raise LockHeld(name, get(session, workspace_id, name, now=now))
    return get(session, workspace_id, name, now=now)


def heartbeat(
    session: Session, workspace_id: int, name: str, user: str, fence: int, *, now: float, ttl: float
) -> LockState:
    """Prolong a live lock by `ttl` from now.

    Raises:
        LockLost: it expired, was revoked or released, or the fence is an older one.
    """
    expires = now + ttl
    values = {
        "workspace": workspace_id,
        "key": name.lower(),
        "user": user,
        "given": fence,
        "now": now,
        "until": expires,
    }
    acquired = session.execute(_RENEW, values).scalar()
    if acquired is None:
        raise LockLost(name)
    return LockState(user, fence, acquired, now, expires)


def require(session: Session, workspace_id: int, name: str, user: str, fence: int, *, now: float) -> None:
    """Hold the lock's row for the rest of the transaction if `user` is the live holder with `fence`.

    Raises:
        LockLost: the caller is not.
    """
    condition = (Lock.holder == user) & (Lock.fence == fence) & (Lock.expires > now)
    if not _change(session, workspace_id, name, condition, fence=Lock.fence):
        raise LockLost(name)


def release(session: Session, workspace_id: int, name: str, user: str, *, now: float, fence: int | None = None) -> None:
    """Give one's own lock back.

    Args:
        fence: release only this very lock, not a later one of the same user.

    Raises:
        NotHolder: the caller does not hold a live lock.
    """
    condition = (Lock.holder == user) & (Lock.expires > now)
    if fence is not None:
        condition &= Lock.fence == fence
    if not _change(session, workspace_id, name, condition, holder=None, expires=now):
        raise NotHolder(name)


def revoke(session: Session, workspace_id: int, name: str, *, now: float) -> LockState:
    """Take the lock from whoever holds it, and make their fence stale.

    Returns:
        the lock as it was before, with its holder.

    Raises:
        NotLocked: nobody holds it.
    """
    hold_row(session, workspace_id, name)
    before = get(session, workspace_id, name, now=now)
    if before.holder is None:
        raise NotLocked(name)
    _change(
        session,
        workspace_id,
        name,
        (Lock.fence == before.fence),
        holder=None,
        fence=Lock.fence + 1,
        expires=now,
    )
    return before


def _change(session: Session, workspace_id: int, name: str, condition: object, **values: object) -> bool:
    result = session.execute(_update(workspace_id, name, condition, **values))
    assert isinstance(result, CursorResult)
    return bool(result.rowcount == 1)


def _update(workspace_id: int, name: str, condition: object, **values: object) -> Update:
    return (
        update(Lock)
        .where(Lock.workspace_id == workspace_id, Lock.name_key == name.lower(), condition)  # type: ignore[arg-type]
        .values(**values)
        .execution_options(synchronize_session=False)
    )
