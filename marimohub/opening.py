"""Opening a notebook: lock, snapshot, server. What fails on the way gives the lock back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from marimohub import locks
from marimohub.database import Database
from marimohub.notebook_errors import FileMissing
from marimohub.notebooks import NotebookStore
from marimohub.snapshots.cache import SnapshotCache

Report = Callable[[str, int, str], Awaitable[None]]


class ServerFailed(Exception):
    """The notebook server did not start. `log` holds its last lines, for administrators only."""

    code = "server_failed"

    def __init__(self, message: str, log: list[str]) -> None:
        super().__init__(message)
        self.message = message
        self.log = log


@dataclass(frozen=True)
class HubServices:
    """What the hub's handlers work with. Times and durations in seconds."""

    database: Database
    store: NotebookStore
    snapshots: SnapshotCache
    lock_ttl: float
    workspace: str
    clock: Callable[[], float]


async def open_notebook(
    services: HubServices,
    workspace_id: int,
    name: str,
    user: str,
    *,
    snapshot_folder: Path,
    start_server: Callable[[Report], Awaitable[None]],
    report: Report,
) -> locks.LockState:
    """Take the lock, link a current snapshot into the user's folder, and see that their server runs.

    Args:
        report: told the phase (`lock`, `snapshot`, `server`), progress in percent, and a sentence.

    Raises:
        NotFound, FileMissing, LockHeld: nothing was done.
        SnapshotError, NoSpace, ServerFailed: a lock that this call took is given back.
    """
    lock, taken = await services.database.run(_lock, services, workspace_id, name, user)
    try:
        await report("lock", 10, "You hold the lock")
        await report("snapshot", 20, "Taking a snapshot of the warehouse")
        snapshot = await services.snapshots.ensure()
        await asyncio.to_thread(services.snapshots.link, snapshot, snapshot_folder)
        await report("snapshot", 50, "The snapshot is ready")
        await start_server(report)
    except BaseException:
        if taken:
            await asyncio.shield(services.database.write(_give_back, services, workspace_id, name, user, lock.fence))
        raise
    return lock


def _lock(services: HubServices, workspace_id: int, name: str, user: str) -> tuple[locks.LockState, bool]:
    now = services.clock()
    info = services.store.get(workspace_id, name, now=now)
    if not info.file_exists:
        raise FileMissing
    with services.database.transaction() as session:
        before = locks.get(session, workspace_id, name, now=now)
        lock = locks.acquire(session, workspace_id, name, user, now=now, ttl=services.lock_ttl)
    return lock, before.fence != lock.fence


def _give_back(session: Session, services: HubServices, workspace_id: int, name: str, user: str, fence: int) -> None:
    try:
        locks.release(session, workspace_id, name, user, now=services.clock(), fence=fence)
    except locks.NotHolder:
        return
