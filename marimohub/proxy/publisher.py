"""Bringing the route table to Envoy: changes made together share one write, and each waits until it is served.

Three files, each a Channel: the table itself, the routes that are newer than it (recent.py), and the sockets of servers
that have no port (sockets.py). Most changes go into the table. One route more among many goes into the recent ones, is
confirmed, and the table follows a moment later, when nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from marimohub.proxy import bootstrap, recent, sockets
from marimohub.proxy.admin import Admin
from marimohub.proxy.channel import Channel
from marimohub.proxy.routes import Route
from marimohub.proxy.share import Share
from marimohub.proxy.table import RECENT_FILE, RouteTable, save_recent

TABLE_FILE = "routes.json"
QUICK_FROM = 50  # routes; Envoy builds a smaller table in a millisecond
SETTLE_SECONDS = 3.0  # a table of 10,000 keeps Envoy from taking the next route for 0.1 s, so not too often
RETRY_SECONDS = 10.0


class Rounds:
    """Runs one action for everybody who asks: those who ask while it runs share the next run."""

    def __init__(self, action: Callable[[], Awaitable[None]], name: str) -> None:
        self._action = action
        self._name = name
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def ask(self) -> asyncio.Future[None]:
        """Done when a run that began after this call is done, with its exception if there was one."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        if not self.busy:
            self._task = asyncio.create_task(self._run(), name=self._name)
        return waiter

    def cancel(self) -> None:
        """Stop; whoever waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
        for waiter in self._waiting:
            waiter.cancel()

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._action()
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


class Publisher:
    """Writes a table's files whenever it changed."""

    def __init__(
        self,
        folder: Path,
        admin: Admin,
        table: RouteTable,
        *,
        deadline: float,
        trusted_hops: int,
        share: Share | None = None,
    ) -> None:
        self._folder = folder
        self._table = table
        self._trusted_hops = trusted_hops

        def channel(file: str, statistics: str) -> Channel:
            return Channel(folder / file, admin, statistics, deadline=deadline, share=share)

        self._whole = channel(bootstrap.ROUTES_FILE, bootstrap.ROUTE_STATS)
        self._newest = channel(bootstrap.RECENT_FILE, bootstrap.RECENT_STATS)
        self._endpoints = channel(bootstrap.SOCKETS_FILE, bootstrap.SOCKET_STATS)
        self._recent: dict[str, int] = {}  # routespec → number of the change after which the table has it
        self._sockets: frozenset[str] = frozenset()
        self._known = False  # whether Envoy's recent routes and sockets are those that we know of
        self._saving = asyncio.Lock()
        self._all = Rounds(self._serve_all, "envoy-routes")
        self._quick = Rounds(self._serve_recent, "envoy-recent-routes")
        self._merging: asyncio.TimerHandle | None = None

    @property
    def writes(self) -> int:
        """How often the whole table was written."""
        return self._whole.number

    @property
    def pending(self) -> bool:
        """Whether a change has not been confirmed yet."""
        return self._all.busy or self._quick.busy

    async def served(self, route: Route | None = None) -> None:
        """Return when Envoy serves the table as it is now. Raises RouteNotServed after the deadline.

        Args:
            route: the one that was just set, if that is the only change to wait for.
        """
        if route is not None and self._take(route):
            waiter = self._quick.ask()
            try:
                await asyncio.shield(waiter)
            finally:  # also if the caller gave up, but not if the publisher was stopped
                if not waiter.cancelled():
                    self._merge_after(SETTLE_SECONDS if len(self._recent) < recent.LIMIT // 2 else 0.0)
        else:
            await self._all.ask()

    def write_soon(self) -> None:
        """Write the table in the background; a failure shows at the next change."""
        self._all.ask().add_done_callback(lambda waiter: waiter.cancelled() or waiter.exception())

    def cancel(self) -> None:
        """Stop writing; whoever waits is cancelled."""
        if self._merging is not None:
            self._merging.cancel()
            self._merging = None
        self._all.cancel()
        self._quick.cancel()

    async def write(self) -> int:
        """Write all files now, as an Envoy that is about to start reads them; the number of this write."""
        covered = self._table.changes
        self._sockets, self._known = self._table.sockets(), True
        number = await self._whole.write(self._render_whole)
        await self._endpoints.write(self._render_sockets)
        await self._save()
        self._forget(covered)
        await self._newest.write(self._render_recent)
        await self._save_recent()
        return number

    async def confirm(self, number: int) -> None:
        """Wait until Envoy serves that write or a later one. Raises RouteNotServed."""
        await self._whole.confirm(number)

    # -- one route more ------------------------------------------------------------------------------------

    def _take(self, route: Route) -> bool:
        """Put the route among the recent ones; whether it can be there."""
        if not self._known or len(self._table) < QUICK_FROM or self._table.has_hosts or not recent.fits(route):
            return False
        family = {route.routespec: route, **{below.routespec: below for below in self._table.below(route.routespec)}}
        if len(self._recent.keys() | family) > recent.LIMIT or not all(map(recent.fits, family.values())):
            return False
        self._recent.update(dict.fromkeys(family, self._table.changes))
        return True

    async def _serve_recent(self) -> None:
        await _both(self._newest.serve(self._render_recent), self._save_recent())

    def _merge_after(self, seconds: float) -> None:
        """Bring the recent routes into the table then, or earlier if that is planned already."""
        loop = asyncio.get_running_loop()
        if self._merging is not None:
            if self._merging.when() <= loop.time() + seconds:
                return
            self._merging.cancel()
        self._merging = loop.call_later(seconds, self._merge)

    def _merge(self) -> None:
        self._merging = None
        self._all.ask().add_done_callback(self._merged)

    def _merged(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.cancelled() and not waiter.exception() and self._recent:
            self._merge_after(SETTLE_SECONDS)

    def _forget(self, covered: int) -> bool:
        """Drop the recent routes that the table has; whether there were any. `covered`: its number of changes."""
        before = len(self._recent)
        self._recent = {spec: change for spec, change in self._recent.items() if change > covered}
        return len(self._recent) < before

    # -- the whole table -----------------------------------------------------------------------------------

    async def _serve_all(self) -> None:
        try:
            await self._bring_up_to_date()
        except Exception:
            # Whenever Envoy comes back it must find nothing that was taken away, or that was never confirmed.
            self._merge_after(RETRY_SECONDS)
            await self._newest.write(self._render_recent)
            await self._save_recent()
            raise

    async def _bring_up_to_date(self) -> None:
        covered = self._table.changes
        wanted = self._table.sockets()
        if not self._known or not wanted <= self._sockets:  # before the routes that lead there
            self._sockets |= wanted
            await self._endpoints.serve(self._render_sockets)
        await _both(self._whole.serve(self._render_whole), self._save())
        if self._forget(covered) or not self._known:
            await _both(self._newest.serve(self._render_recent), self._save_recent())
        self._known = True
        if self._sockets - wanted:  # after the routes that led there
            self._sockets = self._table.sockets()
            await self._endpoints.write(self._render_sockets)

    # -- what is written -----------------------------------------------------------------------------------

    def _render_whole(self) -> Callable[[str], bytes]:
        snapshot = self._table.snapshot()
        return lambda version: snapshot.render(version, trusted_hops=self._trusted_hops)

    def _render_recent(self) -> Callable[[str], bytes]:
        routes = [route for route, _ in self._recent_routes() if recent.fits(route)]
        return lambda version: recent.render(version, routes)

    def _render_sockets(self) -> Callable[[str], bytes]:
        paths = self._sockets
        return lambda version: sockets.render(version, paths)

    def _recent_routes(self) -> list[tuple[Route, int]]:
        found = ((self._table.get(spec), change) for spec, change in self._recent.items())
        return [(route, change) for route, change in found if route is not None]

    async def _save(self) -> None:
        async with self._saving:
            await asyncio.to_thread(self._table.snapshot().save, self._folder / TABLE_FILE)

    async def _save_recent(self) -> None:
        async with self._saving:
            path, routes = self._folder / RECENT_FILE, self._recent_routes()
            await asyncio.to_thread(save_recent, path, routes)


async def _both(serving: Awaitable[None], saving: Awaitable[None]) -> None:
    """Wait for both, whatever happens to one; the first one's exception goes before the other's."""
    for result in await asyncio.gather(serving, saving, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
