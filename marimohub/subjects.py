"""People as the policy knows them: JupyterHub's users with role, groups, and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jupyterhub import orm
from jupyterhub.scopes import get_scopes_for
from sqlalchemy import select
from sqlalchemy.orm import Session

from marimohub.auth import roles
from marimohub.governance import store
from marimohub.governance.subject import Subject


class NoPerson(Exception):
    """Nobody of that name has an account here, or they have not signed in yet."""

    code = "no_person"

    def __init__(self, name: str) -> None:
        self.message = f'There is nobody called "{name}". People appear at their first sign-in.'
        super().__init__(self.message)


def find_person(session: Session, name: str) -> orm.User:
    """The person of a name.

    Raises:
        NoPerson
    """
    # PostgreSQL refuses NUL in a parameter, and a lone surrogate
    found = session.scalar(select(orm.User).where(orm.User.name == name)) if name.isprintable() else None
    if found is None:
        raise NoPerson(name)
    return found


def subject_of(user: Any, attributes: Mapping[str, Any]) -> Subject:
    """A person for the policy.

    The role is what all of the person's own scopes amount to: a token that may do little sees no other data than its
    owner, and one made by an administrator for a script no more.

    Args:
        user: JupyterHub's user, wrapped or not, in a live session.
    """
    orm_user: orm.User = getattr(user, "orm_user", user)
    return Subject(
        user=orm_user.name,
        role=roles.role_of(get_scopes_for(orm_user)),
        groups=frozenset(group.name for group in orm_user.groups),
        attributes=attributes,
    )


def set_attributes(session: Session, name: str, values: dict[str, Any], *, by: str, now: float) -> None:
    """Make `values` all that is stored about a person who exists.

    Raises:
        NoPerson: also if they are deleted at the same time.
    """
    # the lock keeps two changes, and a change and a deletion, apart on PostgreSQL; SQLite has one writer
    locked = select(orm.User.id).where(orm.User.name == name).with_for_update()
    if not name.isprintable() or session.scalar(locked) is None:
        raise NoPerson(name)
    store.set_attributes(session, name, values, by, now)
