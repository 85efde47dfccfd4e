"""Policies with their history, and people's attributes, in the database. Functions of one session; they check no rules.

A revision is never changed or removed: the history says who saw what, and why, at any time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from marimohub.governance.errors import PolicyError
from marimohub.orm import AuditEntry, PolicyRevision, UserAttribute, Workspace


@dataclass(frozen=True)
class PolicyEntry:
    """One revision without its text; revisions count from 1. `created` in POSIX seconds."""

    revision: int
    author: str
    comment: str
    created: float


@dataclass(frozen=True)
class StoredPolicy:
    """One revision with its text."""

    revision: int
    text: str
    author: str
    comment: str
    created: float

    @property
    def entry(self) -> PolicyEntry:
        """As the history lists it."""
        return PolicyEntry(self.revision, self.author, self.comment, self.created)


class PolicyChanged(PolicyError):
    """Somebody applied another policy in the meantime."""

    code = "policy_changed"

    def __init__(self, current: int) -> None:
        super().__init__(
            f"The policy was changed in the meantime: it has revision {current} now. Look at it, then apply again."
            if current
            else "There is no policy yet, so it has no revision that could be replaced."
        )
        self.current = current


class NoRevision(PolicyError):
    """The history has no such revision."""

    code = "no_revision"

    def __init__(self, revision: int) -> None:
        super().__init__(f"The policy has no revision {revision}.")


def current_revision(session: Session, workspace_id: int) -> int:
    """The number of the revision that applies, 0 if there is no policy."""
    newest = select(func.max(PolicyRevision.revision)).where(PolicyRevision.workspace_id == workspace_id)
    return session.scalar(newest) or 0


def current(session: Session, workspace_id: int) -> StoredPolicy | None:
    """The policy that applies, None if there is none yet."""
    found = session.scalar(_newest_first(workspace_id).limit(1))
    return _stored(found) if found is not None else None


def history(session: Session, workspace_id: int) -> list[PolicyEntry]:
    """All revisions, newest first. Their texts, of up to a megabyte each, are not read."""
    row = PolicyRevision
    found = session.execute(
        select(row.revision, row.author, row.comment, row.created)
        .where(row.workspace_id == workspace_id)
        .order_by(row.revision.desc())
    )
    return [PolicyEntry(*entry) for entry in found]


def get(session: Session, workspace_id: int, revision: int) -> StoredPolicy:
    """One revision.

    Raises:
        NoRevision
    """
    found = session.scalar(_newest_first(workspace_id).where(PolicyRevision.revision == revision))
    if found is None:
        raise NoRevision(revision)
    return _stored(found)


def apply(
    session: Session, workspace_id: int, text: str, *, author: str, comment: str, expected: int | None, now: float
) -> StoredPolicy:
    """Make `text` the policy, as a new revision, with its audit entry.

    Args:
        expected: the revision that it was made from, 0 for none; None: whatever there is.

    Raises:
        PolicyChanged: another revision applies than the expected one.
    """
    # one at a time, also on PostgreSQL; the unique constraint would otherwise refuse the second with no word of why
    session.get_one(Workspace, workspace_id, with_for_update=True)
    before = current_revision(session, workspace_id)
    if expected is not None and expected != before:
        raise PolicyChanged(before)
    made = PolicyRevision(
        workspace_id=workspace_id, revision=before + 1, text=text, author=author, comment=comment, created=now
    )
    session.add(made)
    session.add(
        AuditEntry(created=now, actor=author, action="apply_policy", target=f"revision {before + 1}", detail=comment)
    )
    session.flush()
    return _stored(made)


def attributes_of(session: Session, user: str) -> dict[str, Any]:
    """What is stored about a person, by name."""
    found = session.scalars(select(UserAttribute).where(UserAttribute.user_name == user).order_by(UserAttribute.name))
    return {attribute.name: json.loads(attribute.value) for attribute in found}


def set_attributes(session: Session, user: str, values: dict[str, Any], by: str, now: float) -> None:
    """Make `values` all that is stored about a person, with an audit entry if that changes anything.

    Two at once on one person must be kept apart by the caller (`subjects.set_attributes` locks the person's row).
    """
    before = attributes_of(session, user)
    changed = {name for name in {*before, *values} if _json(before.get(name)) != _json(values.get(name))}
    if not changed:
        return
    for name in sorted(changed):
        if name in values:
            session.merge(
                UserAttribute(user_name=user, name=name, value=_json(values[name]), changed=now, changed_by=by)
            )
        else:
            session.execute(delete(UserAttribute).where(UserAttribute.user_name == user, UserAttribute.name == name))
    detail = json.dumps({"before": before, "after": values})
    session.add(AuditEntry(created=now, actor=by, action="set_attributes", target=user, detail=detail))
    session.flush()


def forget(session: Session, user: str) -> None:
    """Remove what is stored about a deleted person: somebody else may get the name."""
    session.execute(delete(UserAttribute).where(UserAttribute.user_name == user))


def forget_all_but(session: Session, users: set[str]) -> list[str]:
    """Remove what is stored about everybody else, for people who went while no hub was there to see it."""
    gone = [name for name in session.scalars(select(UserAttribute.user_name).distinct()) if name not in users]
    for name in gone:
        forget(session, name)
    return gone


def _newest_first(workspace_id: int) -> Select[PolicyRevision]:
    found = select(PolicyRevision).where(PolicyRevision.workspace_id == workspace_id)
    return found.order_by(PolicyRevision.revision.desc())


def _stored(row: PolicyRevision) -> StoredPolicy:
    return StoredPolicy(row.revision, row.text, row.author, row.comment, row.created)


def _json(value: Any) -> str:
    # 1, 1.0 and true are equal in Python, and not the same attribute
    return json.dumps(value)
