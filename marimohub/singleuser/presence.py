"""Who has a notebook open: keeps its lock alive while a page is connected, and reports activity to the hub."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any

from marimohub.singleuser.hubapi import HubApi, HubRefused, HubUnreachable
from marimohub.singleuser.sync import NotebookSync

log = logging.getLogger("marimohub.singleuser")

RETRY = 5.0  # seconds until the next heartbeat after one that reached no hub


class Presence:
    """Counts the connections of each notebook and sends the heartbeat while there is one."""

    def __init__(self, hub: HubApi, sync: NotebookSync, interval: float) -> None:
        self._hub, self._sync, self._interval = hub, sync, interval
        self._connections: dict[str, int] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}

    @property
    def anyone(self) -> bool:
        return bool(self._connections)

    @contextlib.contextmanager
    def connected(self, name: str) -> Iterator[None]:
        """Held while one WebSocket or event stream of a page with this notebook is open."""
        self._connections[name] = self._connections.get(name, 0) + 1
        if self._connections[name] == 1:
            self._tasks[name] = [_start(self._beat(name)), _start(self._sync.watch(name))]
        try:
            yield
        finally:
            self._connections[name] -= 1
            if not self._connections[name]:
                del self._connections[name]
                self._stop(name)

    def close(self) -> None:
        for name in list(self._tasks):
            self._stop(name)

    def _stop(self, name: str) -> None:
        for task in self._tasks.pop(name, []):
            task.cancel()

    async def _beat(self, name: str) -> None:
        answered = True
        while True:
            notebook = self._sync.opened(name)
            if notebook is None or notebook.known.fence is None:
                await asyncio.sleep(RETRY)
                continue
            if notebook.lost:
                await notebook.reopened.wait()
                continue
            delay = self._interval
            try:
                await self._hub.heartbeat(name, notebook.known.fence)
                answered = True
            except HubRefused as error:
                if error.status == 409:
                    self._sync.lock_lost(name, error.message)
                    continue
                log.warning("heartbeat %s refused: %s", name, error)
            except HubUnreachable as error:
                if answered:  # one line for an outage, not one for every try
                    log.warning("heartbeat %s: hub unreachable: %s", name, error)
                answered = False
                delay = min(RETRY, delay)
            await asyncio.sleep(delay)


def _start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    task.add_done_callback(_log_failure)
    return task


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a background task failed", exc_info=error)


class Activity:
    """Reports to the hub when this server was last used, as JupyterHub's own single-user server does."""

    def __init__(self, hub: HubApi, url: str, server_name: str, interval: float, busy: Callable[[], bool]) -> None:
        self._hub, self._url, self._server, self._interval, self._busy = hub, url, server_name, interval, busy
        self._last = datetime.now(UTC)
        self._sent: datetime | None = None

    def touch(self) -> None:
        self._last = datetime.now(UTC)

    async def run(self) -> None:
        """Report until cancelled."""
        while self._url:
            if self._busy():
                self.touch()
            if self._sent is None or self._last > self._sent:
                await self._report(self._last)
            await asyncio.sleep(self._interval * random.uniform(0.9, 1.1))  # noqa: S311 - spreads the calls only

    async def _report(self, last: datetime) -> None:
        when = last.isoformat().replace("+00:00", "Z")
        try:
            await self._hub.activity({"servers": {self._server: {"last_activity": when}}, "last_activity": when})
            self._sent = last
        except (HubRefused, HubUnreachable) as error:
            log.warning("cannot report activity: %s", error)
