"""Bringing the route table to Envoy: changes made together share one write, and each waits until it is served."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from marimohub.proxy.admin import Admin, AdminUnavailable
from marimohub.proxy.bootstrap import ROUTE_STATS, ROUTE_STATS_FILTER, ROUTES_FILE
from marimohub.proxy.errors import RouteNotServed
from marimohub.proxy.table import RouteTable

TABLE_FILE = "routes.json"
_VERSION = f"{ROUTE_STATS}version_text"
_REJECTED = f"{ROUTE_STATS}update_rejected"
_POLL_FIRST = 0.001
_POLL_LONGEST = 0.02


class Publisher:
    """Writes a table's files whenever it changed. One write is under way at a time."""

    def __init__(self, folder: Path, admin: Admin, table: RouteTable, *, deadline: float, trusted_hops: int) -> None:
        self._folder = folder
        self._admin = admin
        self._table = table
        self._deadline = deadline
        self._trusted_hops = trusted_hops
        # Never a version of an earlier hub: an adopted Envoy still reports those.
        self._series = f"{time.time_ns():x}"
        self._number = 0
        self._lock = asyncio.Lock()
        self._rejected: int | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self.writes = 0

    async def served(self) -> None:
        """Return when Envoy serves the table as it is now. Raises RouteNotServed after the deadline."""
        await self._ask()

    def write_soon(self) -> None:
        """Write the table in the background; a failure shows at the next change."""
        self._ask().add_done_callback(lambda waiter: waiter.cancelled() or waiter.exception())

    @property
    def pending(self) -> bool:
        """Whether a change has not been confirmed yet."""
        return self._task is not None and not self._task.done()

    def _ask(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        if not self.pending:
            self._task = asyncio.create_task(self._run(), name="envoy-routes")
        return waiter

    def cancel(self) -> None:
        """Stop writing; whoever waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
        for waiter in self._waiting:
            waiter.cancel()

    async def write(self) -> int:
        """Write both files now, as an Envoy that is about to start reads them; the number of this write."""
        async with self._lock:  # An older snapshot must never replace a newer one.
            self._number += 1
            self.writes += 1
            number, version = self._number, f"{self._series}.{self._number}"
            snapshot = self._table.snapshot()
            published = self._folder / ROUTES_FILE
            await asyncio.gather(
                asyncio.to_thread(snapshot.save, self._folder / TABLE_FILE),
                asyncio.to_thread(snapshot.publish, published, version, trusted_hops=self._trusted_hops),
            )
            return number

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                if self._rejected is None:  # An adopted Envoy may have refused something long ago.
                    self._rejected = int((await self._stats()).get(_REJECTED, 0))
                await self.confirm(await self.write())
            except asyncio.CancelledError:
                for waiter in batch:
                    waiter.cancel()
                raise
            except Exception as error:
                for waiter in batch:
                    if not waiter.done():
                        waiter.set_exception(error)
            else:
                for waiter in batch:
                    if not waiter.done():
                        waiter.set_result(None)

    async def confirm(self, number: int) -> None:
        """Wait until Envoy serves that write or a later one.

        Raises RouteNotServed if Envoy refuses it, or does not serve it within the deadline.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self._deadline
        pause = _POLL_FIRST
        while (left := end - loop.time()) > 0:
            stats = await self._stats(min(left, 2.0))
            series, _, served = stats.get(_VERSION, "").strip('"').partition(".")
            if series == self._series and int(served) >= number:
                return
            if stats:
                rejected = int(stats.get(_REJECTED, 0))
                refused = rejected > (self._rejected or 0)
                self._rejected = rejected
                if refused:
                    raise RouteNotServed("Envoy refused the new routes; its log says why.")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _POLL_LONGEST)
        raise RouteNotServed(f"Envoy did not serve the new routes within {self._deadline:g} seconds.")

    async def _stats(self, timeout: float = 2.0) -> dict[str, str]:
        try:
            return await self._admin.stats(ROUTE_STATS_FILTER, timeout=timeout)
        except AdminUnavailable:
            return {}  # It is being started again; the supervisor sees to that, and it will read our file.
