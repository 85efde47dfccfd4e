"""One file that Envoy watches, and knowing when Envoy serves what was written to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from marimohub.proxy.admin import Admin, AdminUnavailable
from marimohub.proxy.bootstrap import ROUTE_STATS_FILTER
from marimohub.proxy.errors import RouteNotServed
from marimohub.proxy.share import Share
from marimohub.proxy.table import write_atomically

_POLL_FIRST = 0.001
_POLL_LONGEST = 0.02


class Channel:
    """Numbers what is written and asks Envoy for the number it serves.

    Args:
        path: the file.
        statistics: what Envoy calls its statistics of this file, up to and with the last dot.
        deadline: seconds that Envoy may take.
        share: where further Envoys get the file from.
    """

    def __init__(
        self, path: Path, admin: Admin, statistics: str, *, deadline: float, share: Share | None = None
    ) -> None:
        self._path = path
        self._share = share
        self._admin = admin
        self._version = f"{statistics}version_text"
        self._refusals = f"{statistics}update_rejected"
        self._deadline = deadline
        # Never a version of an earlier hub: an adopted Envoy still reports those.
        self._series = f"{time.time_ns():x}"
        self._lock = asyncio.Lock()
        self._refused: int | None = None
        self.number = 0

    async def write(self, prepare: Callable[[], Callable[[str], bytes]], *, to_all: bool = False) -> int:
        """Replace the file; the number of this write. Raises OSError, and RouteNotServed only with `to_all`.

        Args:
            to_all: fail if the file cannot be given to further Envoys.
            prepare: takes what is to be written, on the event loop, and gives a function of the version that renders it
                in a thread. Called when every earlier write is done: older content never replaces newer.
        """
        async with self._lock:
            self.number += 1
            number = self.number
            render = prepare()
            content = await asyncio.to_thread(self._replace, render, f"{self._series}.{number}")
            if self._share is not None:
                await self._share.give(f"{self._path.parent.name}/{self._path.name}", content, strict=to_all)
            return number

    def _replace(self, render: Callable[[str], bytes], version: str) -> bytes:
        content = render(version)
        write_atomically(self._path, content, durable=False)  # It is rendered again at every start.
        return content

    async def serve(self, prepare: Callable[[], Callable[[str], bytes]]) -> None:
        """Replace the file and return when Envoy, and each further one, serves it. Raises RouteNotServed, OSError."""
        if self._refused is None:  # An adopted Envoy may have refused something long ago.
            self._refused = int((await self._statistics()).get(self._refusals, 0))
        number = await self.write(prepare, to_all=True)
        await self.confirm(number)
        if self._share is not None:
            await self._share.confirm(self._version, f"{self._series}.{number}")

    async def confirm(self, number: int) -> None:
        """Wait until Envoy serves that write or a later one.

        Raises RouteNotServed if Envoy refuses it, or does not serve it within the deadline.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self._deadline
        pause = _POLL_FIRST
        while (left := end - loop.time()) > 0:
            found = await self._statistics(min(left, 2.0))
            series, _, served = found.get(self._version, "").strip('"').partition(".")
            if series == self._series and int(served) >= number:
                return
            if found:
                refused = int(found.get(self._refusals, 0))
                again = refused > (self._refused or 0)
                self._refused = refused
                if again:
                    raise RouteNotServed("Envoy refused the new routes; its log says why.")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _POLL_LONGEST)
        raise RouteNotServed(f"Envoy did not serve the new routes within {self._deadline:g} seconds.")

    async def _statistics(self, timeout: float = 2.0) -> dict[str, str]:
        try:
            return await self._admin.stats(ROUTE_STATS_FILTER, timeout=timeout)
        except AdminUnavailable:
            return {}  # It is being started again; the supervisor sees to that, and it will read our file.
