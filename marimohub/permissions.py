"""What a person may do with a notebook, as data: the rules of the Notebooks page in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from marimohub.drafts import DraftInfo
from marimohub.notebooks import NotebookInfo
from marimohub.versions import VersionInfo

_UNITS = ((31_536_000, "y"), (2_592_000, "mo"), (86_400, "d"), (3600, "h"), (60, "m"))

SIDE_LABELS = {
    "current": "Current text",
    "own_draft": "Your draft",
    "create": "Created",
    "copy": "Copied",
    "save": "Saved",
    "restore": "Restored",
    "draft": "Replaced by a draft",
    "disk": "Changed on disk",
}

EmailOf = Callable[[str | None], str | None]


@dataclass(frozen=True)
class Viewer:
    """The person who asks: name, and role of the workspace (None: no access)."""

    user: str
    role: str | None

    @property
    def can_edit(self) -> bool:
        return self.role in ("editor", "admin")

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"


def lock_state(info: NotebookInfo, viewer: Viewer) -> str:
    """`available`, `mine` or `locked`, as the viewer sees it."""
    if info.lock.holder is None:
        return "available"
    return "mine" if info.lock.held_by(viewer.user) else "locked"


def actions(info: NotebookInfo, viewer: Viewer) -> list[str]:
    """The buttons of a row, as documented: by lock state and role alone (a missing file is told on opening)."""
    if not viewer.can_edit:
        return []
    state = lock_state(info, viewer)
    if state == "available":
        return ["open", "delete"]
    if state == "mine":
        return ["release", "delete"]
    return ["copy", *(["force_unlock"] if viewer.is_admin else []), "delete"]


def delete_blocked(info: NotebookInfo, viewer: Viewer) -> str | None:
    """Why Delete would be refused now, None if it would not."""
    if not viewer.is_admin and info.author != viewer.user:
        return "Only its author or an administrator can delete this notebook."
    state = lock_state(info, viewer)
    if state == "mine":
        return "Release your lock first: locked notebooks cannot be deleted."
    if state == "locked":
        return f"{info.lock.holder} is editing it: locked notebooks cannot be deleted until the lock is released."
    return None


def isoformat(seconds: float) -> str:
    """POSIX seconds as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ago(iso: str | None, now: float) -> str:
    """ "2h ago" for an ISO time; static/rows.js says it in the same words. "—" for no time."""
    if not iso:
        return "—"
    seconds = now - datetime.fromisoformat(iso).timestamp()
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)}{unit} ago"
    return "just now"


def lock_model(info: NotebookInfo, viewer: Viewer, email_of: EmailOf) -> dict[str, Any]:
    """The lock as the API shows it."""
    live = info.lock.holder is not None
    return {
        "state": lock_state(info, viewer),
        "holder": info.lock.holder,
        "holder_email": email_of(info.lock.holder) if live else None,
        "since": isoformat(info.lock.acquired) if live else None,
        "expires": isoformat(info.lock.expires) if live else None,
    }


def notebook_model(info: NotebookInfo, viewer: Viewer, email_of: EmailOf) -> dict[str, Any]:
    """A notebook as the API and the page show it to `viewer`. `email_of` knows people's addresses."""
    return {
        "name": info.name,
        "author": info.author,
        "author_email": info.author_email,
        "modified": isoformat(info.modified),
        "file_exists": info.file_exists,
        "lock": lock_model(info, viewer, email_of),
        "actions": actions(info, viewer),
        "delete_blocked": delete_blocked(info, viewer) if viewer.can_edit else None,
    }


def version_model(version: VersionInfo, email_of: EmailOf) -> dict[str, Any]:
    """A version as the API shows it, without its text."""
    return {
        "id": version.id,
        "author": version.author,
        "author_email": email_of(version.author),
        "created": isoformat(version.created),
        "hash": version.hash,
        "kind": version.kind,
        "current": version.current,
    }


def draft_model(draft: DraftInfo) -> dict[str, Any]:
    """A draft as the API shows it to its owner, without its text."""
    return {
        "id": draft.id,
        "notebook": draft.notebook,
        "created": isoformat(draft.created),
        "reason": draft.reason,
        "message": draft.message,
        "base_hash": draft.base_hash,
        "hash": draft.hash,
        "notebook_exists": draft.notebook_exists,
        "can_replace": draft.can_replace,
    }
