"""Envoys with an earlier configuration: they accept nothing any more and keep the connections they have for a time.

A new configuration needs a new process. Both listen on the same port for a moment (Envoy sets SO_REUSEPORT), then the
old one's listener is taken away by a file that it watches. The port is never closed; only a connection that the kernel
is just setting up for the old one in that very moment is reset. Envoy's own hot restart has not even that, but needs
shared memory and a socket that tells whoever reaches it to give up the listener.

`draining.json` names these processes, so that the next hub looks after them, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from marimohub.proxy import bootstrap
from marimohub.proxy.admin import Admin, AdminUnavailable
from marimohub.proxy.errors import ProxyStartFailed
from marimohub.proxy.process import Identity
from marimohub.proxy.table import write_atomically

STATE_FILE = "draining.json"
_OPEN = re.compile(r'^envoy_http_downstream_cx_active{envoy_http_conn_manager_prefix="public"} (\d+)$', re.MULTILINE)
_LISTENERS = re.compile(r"^envoy_listener_manager_total_listeners_active{} (\d+)$", re.MULTILINE)
_LONGER = 10.0  # seconds; Envoy closes the last connections itself when its time is over


@dataclass(frozen=True)
class Old:
    """One replaced Envoy.

    Attributes:
        until: when it is ended at the latest, in seconds since the epoch.
    """

    identity: Identity
    until: float


class Draining:
    """The replaced Envoys of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / STATE_FILE
        self._old: list[Old] = []

    def __len__(self) -> int:
        return len(self._old)

    def runs(self) -> set[str]:
        """Names of the folders that they work in."""
        return {old.identity.run for old in self._old}

    def load(self) -> None:
        """Those that an earlier hub replaced and that still run. Raises ProxyStartFailed if the file is damaged."""
        try:
            entries = json.loads(self._path.read_text())
            if not isinstance(entries, list):
                raise TypeError("no list")
            found = [Old(Identity(**entry["identity"]), float(entry["until"])) for entry in entries]
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            raise ProxyStartFailed(
                f"{self._path} is damaged ({error}). End any process named envoy, then delete the file."
            ) from error
        self._old = [old for old in found if old.identity.alive()]
        for old in self._old:  # That hub may have been killed before it did this.
            self._take_listener(old)

    def add(self, identity: Identity, seconds: float) -> None:
        """Remember an Envoy that is about to be replaced; it still serves."""
        self._old.append(Old(identity, time.time() + seconds + _LONGER))
        self._store()

    def forget(self, identity: Identity) -> None:
        """It was not replaced after all."""
        self._old = [old for old in self._old if old.identity != identity]
        self._store()

    def take_listeners(self) -> None:
        """From now on they accept no connections, and ask HTTP clients to connect anew with their next answer."""
        for old in self._old:
            self._take_listener(old)

    async def settle(self) -> None:
        """Wait until they have stopped listening and those without connections have ended; a second at the most."""
        for _ in range(40):
            await self.look_after()
            if all([self._open_connections(await self._told(old)) for old in self._old]):
                return
            await asyncio.sleep(0.025)

    async def look_after(self) -> int:
        """End those without connections and those whose time is over; how many have ended since the last call."""
        left = []
        for old in self._old:
            if not old.identity.alive():
                continue
            left.append(old)
            if time.time() > old.until + _LONGER:
                _signal(old.identity, signal.SIGKILL)
            elif time.time() > old.until or self._open_connections(await self._told(old)) == 0:
                _signal(old.identity, signal.SIGTERM)
        gone = len(self._old) - len(left)
        if gone:
            self._old = left
            self._store()
        return gone

    def end(self) -> None:
        """End all, with their connections."""
        if not self._old:
            return
        for old in self._old:
            _signal(old.identity, signal.SIGKILL)
        self._old = []
        self._store()

    async def _told(self, old: Old) -> str:
        """Its statistics; "" if it does not answer."""
        try:
            return await Admin(self._folder / old.identity.run / bootstrap.ADMIN_SOCKET).metrics()
        except AdminUnavailable:
            return ""

    @staticmethod
    def _open_connections(told: str) -> int | None:
        """How many of clients' connections are open; None while it listens, and if it did not answer."""
        listeners = _LISTENERS.search(told)
        if listeners is None or listeners[1] != "0":
            return None
        connections = _OPEN.search(told)
        return int(connections[1]) if connections else 0  # Envoy forgets the number with its last connection.

    def _take_listener(self, old: Old) -> None:
        path = self._folder / old.identity.run / bootstrap.LISTENERS_FILE
        with contextlib.suppress(FileNotFoundError):  # It has just ended, and somebody tidied up.
            write_atomically(path, bootstrap.render_listeners(None), durable=False)

    def _store(self) -> None:
        document = [{"identity": asdict(old.identity), "until": old.until} for old in self._old]
        write_atomically(self._path, json.dumps(document), durable=True)


def _signal(identity: Identity, number: signal.Signals) -> None:
    """To this very process, and to no other that was given its number since."""
    with contextlib.suppress(ProcessLookupError):
        if not hasattr(os, "pidfd_open"):
            if identity.alive():
                os.kill(identity.pid, number)
            return
        descriptor = os.pidfd_open(identity.pid)
        try:
            if identity.alive():
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
