"""Opening a notebook: lock, snapshot, server. What fails on the way gives the lock back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from marimohub import locks
from marimohub.database import Database
from marimohub.notebook_errors import FileMissing
from marimohub.notebooks import NotebookStore
from marimohub.personal import PersonalSnapshots, Place
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
    personal: PersonalSnapshots
    lock_ttl: float
    workspace: str
    clock: Callable[[], float]


async def open_notebook(
    services: HubServices,
    workspace_id: int,
    name: str,
    user: str,
    *,
    place: Place,
    stop_server: Callable[[], Awaitable[None]],
    start_server: Callable[[Report], Awaitable[None]],
    report: Report,
) -> locks.LockState:
    """Take the lock, link a current snapshot into the user's folder, and see that their server runs.

    Args:
        place: where this person's snapshot goes.
        stop_server: ends their server, if it runs: one that has what they may no longer see does not go on.
        report: told the phase (`lock`, `snapshot`, `server`), progress in percent, and a sentence.

    Raises:
        NotFound, FileMissing, LockHeld: nothing was done.
        PolicyInvalid, SnapshotError, NoSpace, ServerFailed: a lock that this call took is given back.
    """
    lock, taken = await services.database.run(_lock, services, workspace_id, name, user)
    try:
        await report("lock", 10, "You hold the lock")
        await report("snapshot", 20, "Taking a snapshot of the warehouse")
        await _give_snapshot(services, place, stop_server, report)
        await report("snapshot", 50, "The snapshot is ready")
        await start_server(report)
    except BaseException:
        if taken:
            await asyncio.shield(services.database.write(_give_back, services, workspace_id, name, user, lock.fence))
        raise
    return lock


async def _give_snapshot(
    services: HubServices, place: Place, stop_server: Callable[[], Awaitable[None]], report: Report
) -> None:
    """The cache reports from wherever the work is done; what it says is passed on while it is waited for."""
    said: asyncio.Queue[tuple[float, str] | None] = asyncio.Queue()

    async def give() -> None:
        try:
            await services.personal.give(
                place, stop=stop_server, report=lambda part, what: said.put_nowait((part, what))
            )
        finally:
            said.put_nowait(None)

    giving = asyncio.create_task(give())
    try:
        while (heard := await said.get()) is not None:
            await report("snapshot", 20 + round(30 * heard[0]), heard[1])
        await giving
    finally:
        giving.cancel()


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
