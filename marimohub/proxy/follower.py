"""A replica's side of the shared folder: gives what the hub wrote to its own Envoy, and tells what that serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from marimohub.proxy import bootstrap, recent, routes, sockets
from marimohub.proxy.activity import Activity
from marimohub.proxy.admin import Admin, AdminUnavailable
from marimohub.proxy.bootstrap import Settings
from marimohub.proxy.errors import ProxyStartFailed, RouteNotServed
from marimohub.proxy.share import BEAT_SECONDS, FORMAT, LEASE_SECONDS, SETTINGS_FILE, STATUS_FOLDER, Status
from marimohub.proxy.table import write_atomically

_POLL_SECONDS = 0.02
_POLL_BUSY_SECONDS = 0.002  # while Envoy has not taken what it was given
_USED_SECONDS = 900.0
# In the order in which the hub writes what belongs together; read the other way round, so that no route that was taken
# out of the recent ones is missing in the table. Sockets go before the routes that lead there.
_STATISTICS = {
    bootstrap.SOCKETS_FILE: f"{bootstrap.SOCKET_STATS}version_text",
    bootstrap.ROUTES_FILE: f"{bootstrap.ROUTE_STATS}version_text",
    bootstrap.RECENT_FILE: f"{bootstrap.RECENT_STATS}version_text",
}
_FILES = (bootstrap.TLS_FILE, *_STATISTICS)
_Stamp = tuple[int, int, int]


class ShareUnreadable(Exception):
    """The folder cannot be used now, or what is in it is not from the hub."""


def check_private(folder: Path) -> None:
    """Raise ProxyStartFailed if others than this user or root could write routes for everybody."""
    try:
        status = folder.stat()
    except OSError as error:
        raise ProxyStartFailed(f"The shared folder {folder} cannot be read: {error.strerror}.") from error
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise ProxyStartFailed(
            f"The shared folder {folder} can be written by others than this user: whoever writes there reads "
            "everybody's traffic. Give it to the user of the hub and of this proxy, with mode 0700."
        )


def version_of(content: bytes) -> str:
    """The version in a file of the hub. Raises ShareUnreadable."""
    try:
        if content[:1] == b"{":
            return str(json.loads(content)["version_info"])
        # An encoded DiscoveryResponse begins with it: field 1, length, text.
        if content[0] != 0x0A or content[1] > 0x7F or len(content) < 2 + content[1]:
            raise ValueError("no version")
        return content[2 : 2 + content[1]].decode()
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ShareUnreadable(f"A file of routes is damaged: {error!r}") from error


class Follower:
    """Takes a Publisher's place in a replica.

    Args:
        share: the folder that the hub writes.
        folder: where this machine's Envoy reads.
        kill_envoy: ends Envoy at once; called when it does not take what it is given.
    """

    pending = False

    def __init__(
        self,
        share: Path,
        folder: Path,
        admin: Admin,
        activity: Activity,
        log: Any,
        *,
        deadline: float,
        kill_envoy: Callable[[], Awaitable[None]],
    ) -> None:
        self._share = share
        self._folder = folder
        self._admin = admin
        self._activity = activity
        self._log = log
        self._deadline = deadline
        self._kill_envoy = kill_envoy
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.settings_changed = threading.Event()  # the hub was started with other ones
        self._status_path = share / STATUS_FOLDER / f"{self.name}.json"
        self._series = f"withdrawn-{time.time_ns():x}"
        self._number = 0
        self._ready = False  # whether Envoy runs and may get routes
        self._silent = True  # whether it certainly has none
        self._serving = False  # whether it may have routes
        self._settings = b""
        self._stamps: dict[str, _Stamp] = {}
        self._wanted: dict[str, str] = {}  # file → version that Envoy was given
        self._caught_up_at = time.monotonic()
        self._waiting = False
        self._told: tuple[bool, dict[str, str]] | None = None
        self._beat = 0
        self._beat_at = 0.0
        self._renewed = time.monotonic()  # when the folder was last known to be read and written
        self._complaint = ""
        self._busy: asyncio.Future[Any] | None = None
        self._thread = ThreadPoolExecutor(1, "envoy-share")
        self._task: asyncio.Task[None] | None = None

    # -- what EnvoyProxy asks of it ------------------------------------------------------------------------

    async def write(self) -> int:
        """Give an Envoy that is about to start no routes: it gets them when the hub knows that it has them."""
        self._ready = self._serving = self._silent = False
        self._put_nothing()
        # One that runs still, until the other takes its place, must have read that before the hub may rely on it.
        with contextlib.suppress(AdminUnavailable, TimeoutError):
            async with asyncio.timeout(LEASE_SECONDS):
                while not self._is_up_to_date(await self._versions()):
                    await asyncio.sleep(0.005)
        self._silent = True
        return self._number

    async def confirm(self, number: int) -> None:
        """Wait until Envoy read what `write` wrote, then follow the hub. Raises RouteNotServed."""
        end = time.monotonic() + self._deadline
        while not self._is_up_to_date(await self._versions()):
            if time.monotonic() > end:
                raise RouteNotServed(f"Envoy did not read its files within {self._deadline:g} seconds.")
            await asyncio.sleep(0.005)
        self._ready = True
        self._start_following()

    def _start_following(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._follow(), name="envoy-follower")

    async def served(self) -> None:
        """Take over an Envoy that runs already and give it the routes of now. Raises RouteNotServed."""
        self.cancel()  # one round at a time
        self._ready, self._serving, self._wanted = True, False, {}
        try:
            await self._round()
        except (AdminUnavailable, OSError, TimeoutError, ShareUnreadable) as error:
            raise RouteNotServed(f"{error}") from error
        self._start_following()

    def cancel(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def leave(self) -> None:
        """Tell the hub not to wait for this replica. Call it once Envoy has ended, and use this no more."""
        self.cancel()
        try:
            await self._on_share(partial(self._status_path.unlink, missing_ok=True), 2.0)
        except (OSError, TimeoutError, ShareUnreadable) as error:
            self._log.warning("The hub will notice by itself that this proxy ended: %s", error)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def settings(self) -> Settings:
        """What the hub says that Envoy is to be started with. Raises ShareUnreadable, OSError, TimeoutError."""
        self._settings = await self._on_share((self._share / SETTINGS_FILE).read_bytes, LEASE_SECONDS)
        self.settings_changed.clear()
        try:
            document = json.loads(self._settings)
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}, expected {FORMAT}")
            return Settings(**document["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ShareUnreadable(f"{SETTINGS_FILE} is damaged or of another version of MarimoHub: {error}") from error

    # -- following -----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            try:
                await self._round()
                self._complaint = ""
            except (OSError, TimeoutError, ShareUnreadable) as error:
                self._complain(f"The shared folder {self._share}: {error or 'it does not answer'}")
            except AdminUnavailable:
                pass  # The supervisor starts Envoy anew, with no routes.
            except Exception:
                self._log.exception("Proxy: unexpected error while following the hub")
            try:
                await self._keep_promises()
            except OSError as error:
                self._complain(f"{self._folder}: {error}")
            await asyncio.sleep(_POLL_BUSY_SECONDS if self._waiting else _POLL_SECONDS)

    async def _round(self) -> None:
        began = time.monotonic()
        left = max(0.1, self._renewed + LEASE_SECONDS - began) if self._serving else LEASE_SECONDS
        if not self._ready:
            if not self._silent:
                return
            if self._told != (False, {}) or began - self._beat_at > BEAT_SECONDS:
                await self._tell(False, {}, left)
            self._renewed = began
            return
        if not self._serving:
            # Before the files are read: a change that the hub makes after this, it waits for; one before it, we read.
            await self._tell(True, {}, left)
            if not self._ready:
                return
            self._stamps.clear()
            self._serving = True
        found, stamps = await self._on_share(self._read_changed, left)
        if not self._serving:  # Envoy ended meanwhile.
            return
        if found:
            self._put(found)
            self._stamps |= stamps
        due = began - self._beat_at > BEAT_SECONDS
        if found or due or self._waiting:
            versions = await self._versions()
            if due or self._told != (True, versions):
                await self._tell(True, versions, left)
        self._renewed = began

    async def _keep_promises(self) -> None:
        """What the hub relies on when it hears nothing of us: see share.py."""
        now = time.monotonic()
        if self._serving and now - self._renewed > LEASE_SECONDS:
            self._log.error("The shared folder %s is lost: serving no routes until it is back", self._share)
            self._serving = False
            self._put_nothing()
        if not self._ready or now - self._caught_up_at <= LEASE_SECONDS:
            return
        try:
            if self._is_up_to_date(await self._versions()):
                return
        except AdminUnavailable:
            pass
        self._log.error("Envoy does not take the routes it is given: ending it")
        self._ready = self._serving = self._silent = False
        await self._kill_envoy()
        self._silent = True

    def _put_nothing(self) -> None:
        self._number += 1
        version = f"{self._series}.{self._number}"
        self._put(
            {
                bootstrap.ROUTES_FILE: routes.render_table(version, {}),
                bootstrap.RECENT_FILE: recent.render(version, []),
                bootstrap.SOCKETS_FILE: sockets.render(version, []),
            }
        )
        self._stamps.clear()

    def _put(self, found: dict[str, bytes]) -> None:
        # Not in a thread: nothing that this loop decides can come in between. A few milliseconds.
        wanted = {file: version_of(content) for file, content in found.items() if file in _STATISTICS}
        for file in _FILES:
            if file in found:
                write_atomically(self._folder / file, found[file], durable=False)
        self._wanted |= wanted

    async def _versions(self) -> dict[str, str]:
        """Statistic → version of each file that Envoy serves. Raises AdminUnavailable."""
        stats = await self._admin.stats(bootstrap.ROUTE_STATS_FILTER, timeout=1.0)
        versions = {name: stats.get(name, "").strip('"') for name in _STATISTICS.values()}
        self._waiting = not self._is_up_to_date(versions)
        if not self._waiting:
            self._caught_up_at = time.monotonic()
        return versions

    def _is_up_to_date(self, versions: dict[str, str]) -> bool:
        return all(versions[_STATISTICS[file]] == version for file, version in self._wanted.items())

    async def _tell(self, serving: bool, versions: dict[str, str], seconds: float) -> None:
        self._beat += 1
        status = Status(self._beat, serving, versions, self._activity.recent(_USED_SECONDS))
        await self._on_share(partial(status.write, self._status_path), seconds)
        self._told = serving, versions
        self._beat_at = time.monotonic()

    def _read_changed(self) -> tuple[dict[str, bytes], dict[str, _Stamp]]:
        """Content and stamp of each file that is new. Runs in the thread."""
        found, stamps = {}, {}
        for file in (SETTINGS_FILE, *reversed(_FILES)):
            try:
                with open(self._share / file, "rb") as opened:
                    status = os.fstat(opened.fileno())
                    stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
                    if stamp != self._stamps.get(file):
                        found[file], stamps[file] = opened.read(), stamp
            except FileNotFoundError:
                if file != bootstrap.TLS_FILE:
                    raise
        if found.pop(SETTINGS_FILE, self._settings) != self._settings:
            self.settings_changed.set()
        return found, stamps

    async def _on_share(self, function: Callable[[], Any], seconds: float) -> Any:
        """Run it in the folder's own thread; one that hangs there is waited for before the next."""
        if self._busy is not None and not self._busy.done():
            await asyncio.wait([self._busy], timeout=seconds)
            if not self._busy.done():
                raise ShareUnreadable("it does not answer")
        self._busy = asyncio.get_running_loop().run_in_executor(self._thread, function)
        async with asyncio.timeout(seconds):
            return await asyncio.shield(self._busy)

    def _complain(self, sentence: str) -> None:
        """Say it once."""
        if sentence != self._complaint:
            self._complaint = sentence
            self._log.warning("%s", sentence)
